"""Inline SVG without libraries. Horizontal places are per cent, so a chart fills a phone and its letters stay the size
of the text; colours are classes of the style sheet, so charts follow light, dark and print."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from understudy.web.markup import Markup, join, tag
from understudy.web.scales import Scale, linear_ticks, tick_text

Look = Literal["ours", "part", "rival", "oracle", "ablation", "clean"]
TRACK = 26
"""Height of one row of a dot chart, in pixels."""
MOST_POINTS = 240
"""Points drawn of one line; a longer one is thinned evenly."""


@dataclass(frozen=True)
class Dot:
    """A row of a dot chart: what it is, where its value and interval lie, how both read."""

    label: Markup
    text: Markup
    value: float | None
    low: float | None = None
    high: float | None = None
    look: Look = "rival"


@dataclass(frozen=True)
class Line:
    """A series of a line chart; `bars` are the ends of each point's interval."""

    name: str
    points: Sequence[tuple[float, float]]
    look: str = "s0"
    bars: Sequence[tuple[float, float]] = field(default=())
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line across a line chart, named at its end."""

    name: str
    value: float
    look: str


def dot_chart(dots: Sequence[Dot], scale: Scale, title: str, axis: str) -> Markup:
    """One row per value on a common axis. Labels and figures are text, so the chart reads aloud without its marks."""
    ticks = scale.ticks()
    rows = [
        tag(
            "li",
            tag("span", dot.label, class_="dot-label"),
            tag("span", _track(dot, scale, ticks), class_="dot-track"),
            tag("span", dot.text, class_="dot-text"),
            class_=f"dot-row is-{dot.look}",
        )
        for dot in dots
    ]
    names = [_tick_label(scale(t), 12, name) for t, name in _named(scale)]
    ruler = tag("svg", *names, class_="axis", width="100%", height=16, aria_hidden="true")
    foot = tag("div", tag("span", ruler, class_="dot-track"), class_="dot-row dot-axis")
    caption = tag("figcaption", title, " ", tag("span", axis, class_="soft"))
    return tag("figure", caption, tag("ol", *rows, class_="dots"), foot, class_="chart")


def _track(dot: Dot, scale: Scale, ticks: Sequence[float]) -> Markup:
    middle = TRACK / 2
    marks = [_line(scale(t), scale(t), 0, TRACK, "zero" if t == 0 else "grid") for t in ticks]
    if dot.value is not None:
        x = scale(dot.value)
        if dot.low is not None and dot.high is not None and dot.high > dot.low:
            marks.append(_line(scale(dot.low), scale(dot.high), middle, middle, "whisker"))
        if dot.look in ("oracle", "clean"):
            side = 9
            turned = "rotate(45)" if dot.look == "oracle" else None
            square = tag("rect", x=-side / 2, y=-side / 2, width=side, height=side, transform=turned, class_="mark")
            marks.append(tag("svg", square, x=f"{x}%", y=middle, overflow="visible"))
        else:
            marks.append(tag("circle", cx=f"{x}%", cy=middle, r=5.5 if dot.look == "ours" else 4.5, class_="mark"))
    return tag("svg", *marks, width="100%", height=TRACK, overflow="visible", aria_hidden="true")


def line_chart(
    lines: Sequence[Line],
    x: Scale,
    y: Scale,
    label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    levels: Sequence[Level] = (),
    height: int = 220,
) -> Markup:
    """Lines over a common axis. `label` says aloud what is seen; `levels` are named reference lines."""
    plot = height - 24
    y_ticks = y.ticks() if y.kind != "linear" else linear_ticks(y.low, y.high, 4)
    named = x_ticks if x_ticks is not None else _named(x)
    parts: list[Markup] = []
    for t in y_ticks:
        at = _up(y, t, plot)
        parts.append(_line(0, 100, at, at, "grid"))
        name = tick_text(t, y_ticks if y.kind == "linear" else ())
        parts.append(tag("text", name, x=0, dx=-8, y=at + 4, text_anchor="end", class_="tick"))
    parts += [_tick_label(x(value), height - 6, name, right=97) for value, name in named]
    parts += _levels(levels, y, plot)
    curves = [
        tag("polyline", points=_points(line, x, y, plot), class_=f"curve {line.look}")
        for line in lines
        if len(line.points) > 1
    ]
    box = f"0 0 100 {plot}"
    parts.append(tag("svg", *curves, viewBox=box, preserveAspectRatio="none", width="100%", height=plot))
    for line in lines:
        for (at, _), (low, high) in zip(line.points, line.bars, strict=False):
            bottom, top = _up(y, low, plot), _up(y, high, plot)
            parts.append(_line(x(at), x(at), bottom, top, f"whisker {line.look}"))
        if line.dots:
            spots = [(x(a), _up(y, b, plot)) for a, b in line.points]
            parts += [tag("circle", cx=f"{cx}%", cy=cy, r=3.5, class_=f"spot {line.look}") for cx, cy in spots]
    size = {"width": "100%", "height": height}
    return tag("svg", *parts, class_="plot", role="img", aria_label=label, overflow="visible", **size)


def _named(x: Scale) -> list[tuple[float, str]]:
    ticks = x.ticks()
    return [(t, tick_text(t, ticks if x.kind == "linear" else ())) for t in ticks]


def _levels(levels: Sequence[Level], y: Scale, plot: int) -> list[Markup]:
    """Reference lines, named above where there is room, below the lower one of a close pair."""
    parts: list[Markup] = []
    ordered = sorted(levels, key=lambda level: level.value)
    for i, level in enumerate(ordered):
        at = _up(y, level.value, plot)
        close = i + 1 < len(ordered) and at - _up(y, ordered[i + 1].value, plot) < 30
        below = at + 15 if close else at - 6
        parts.append(_line(0, 100, at, at, f"level {level.look}"))
        parts.append(tag("text", level.name, x="100%", y=below, text_anchor="end", class_=f"level-name {level.look}"))
    return parts


def _points(line: Line, x: Scale, y: Scale, plot: int) -> str:
    every = max(1, -(-len(line.points) // MOST_POINTS))
    kept = list(line.points[::every])
    if kept[-1] != line.points[-1]:
        kept.append(line.points[-1])
    return " ".join(f"{x(a):g},{_up(y, b, plot):g}" for a, b in kept)


def histogram(counts: Sequence[int], edges: Sequence[float], label: str, height: int = 84) -> Markup:
    """Bars over bins of log10; whole powers of ten are named under them."""
    plot, most = height - 20, max(counts, default=0) or 1
    x = Scale(edges[0], edges[-1])
    bars = []
    for n, left, right in zip(counts, edges, edges[1:], strict=False):
        tall = round((plot - 4) * n / most, 2)
        width = max(0.1, x(right) - x(left) - 0.4)
        bars.append(tag("rect", x=f"{x(left)}%", y=round(plot - tall, 2), width=f"{width:.3f}%", height=tall))
    whole = [float(t) for t in range(-12, 1) if edges[0] <= t <= edges[-1]]
    named = whole[:: max(1, -(-len(whole) // 4))]
    texts = ["1" if t == 0 else f"10{_superscript(int(t))}" for t in named]
    names = [_tick_label(x(t), height - 5, text, 4, 97) for t, text in zip(named, texts, strict=True)]
    base = _line(0, 100, plot, plot, "base")
    size = {"width": "100%", "height": height}
    return tag("svg", *bars, base, *names, class_="plot bars", role="img", aria_label=label, **size)


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """(name, look) pairs in one line of text."""
    keys = (tag("span", tag("span", class_=f"key {look}"), name, class_="legend-entry") for name, look in entries)
    return tag("p", join(*keys), class_="legend")


def _up(y: Scale, value: float, plot: int) -> float:
    """Pixels from the top; room is left for the name of the highest tick."""
    return round(14 + (plot - 14) * (1 - y(value) / 100), 2)


def _line(x1: float, x2: float, y1: float, y2: float, look: str) -> Markup:
    return tag("line", x1=f"{x1}%", x2=f"{x2}%", y1=y1, y2=y2, class_=look)


def _tick_label(at: float, y: float, text: str, left: float = -1, right: float = 101) -> Markup:
    """A tick's name under its place; before `left` and after `right` it leans inwards to stay on the page."""
    anchor = "start" if at < left else "end" if at > right else "middle"
    return tag("text", text, x=f"{at}%", y=y, text_anchor=anchor, class_="tick")


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
