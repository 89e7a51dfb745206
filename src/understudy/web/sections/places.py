"""Where the loss is lost: by labelled slice and by position in the sequence."""

from collections.abc import Sequence

from understudy.core.records.metric import Measured
from understudy.core.records.scorecard import Positions, Scorecard, Slice
from understudy.web.charts import Dot, Line, dot_chart, legend, line_chart
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import figure, number, percent
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, span, table


def places(card: Scorecard) -> Markup | None:
    """Slices with the largest contribution first, then positions where there are several."""
    several = len(card.positions) > 1
    if not card.slices and not several:
        return None
    lead = "The excess loss of the whole, taken apart."
    lead += " Slices are sorted by what they add: share × excess loss." if card.slices else ""
    columns = dict.fromkeys(s.column for s in card.slices)
    slices = [_slices([s for s in card.slices if s.column == column], column) for column in columns]
    along = tag("h3", "By position", id="positions"), positions_chart(card.positions), _positions(card.positions)
    return section("places", "Where it is lost", *slices, along if several else None, lead=lead)


def contribution(part: Slice) -> float | None:
    """Nats per place that a slice adds to the excess loss of the whole."""
    return part.share * part.delta_loss.value if isinstance(part.delta_loss, Measured) else None


def by_contribution(slices: list[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda s: (contribution(s) is None, -(contribution(s) or 0.0)))


def _slices(slices: list[Slice], column: str) -> Markup:
    by = "by kind of token" if column == "kind" else f"by {column}"
    ordered = by_contribution(slices)
    dots = []
    for part in ordered:
        label = join(part.name, " ", tag("small", percent(part.share), class_="soft"))
        figures = figure(part.delta_loss, sign=True, unit=False)
        dots.append(Dot(label, figures, *span(part.delta_loss), look="part"))
    ends = [end for part in ordered for end in span(part.delta_loss) if end is not None]
    scale = spanning(ends or [0.0, 1.0], zero=True)
    chart = dot_chart(dots, scale, f"Excess loss {by}", "nats per place of the slice, beside its share of places")
    rows = [
        (
            part.name,
            percent(part.share),
            figure(part.loss_clean, unit=False),
            figure(part.loss_replaced, unit=False),
            figure(part.delta_loss, sign=True, unit=False),
            _added(part),
        )
        for part in ordered
    ]
    head = (
        term("slice"),
        "share of places",
        term("loss", "network, nats"),
        "understudy, nats",
        term("delta_loss", "excess, nats"),
        "adds, nats",
    )
    return join(chart, table(f"Slices {by}, by what they add to the excess loss", head, rows))


def _added(part: Slice) -> str:
    added = contribution(part)
    return "" if added is None else number(added, 3, sign=True)


def positions_chart(
    positions: Sequence[Positions],
    name: str = "the position in the sequence",
    arms: tuple[str, str] = ("the network itself", "understudy"),
) -> Markup | None:
    """Loss of both along the sequence, on a logarithmic axis if the bins widen."""
    known = [p for p in positions if isinstance(p.loss_clean, Measured) and isinstance(p.loss_replaced, Measured)]
    if len(known) < 2:
        return None
    widths = [p.last - p.first + 1 for p in known]
    x_of = {id(p): (p.first + p.last) / 2 for p in known}
    first, last = x_of[id(known[0])], x_of[id(known[-1])]
    if max(widths) <= 4 * min(widths):
        x = spanning([first, last])
    elif first > 0:
        x = Scale(first * 0.85, last * 1.15, "log")
    else:
        x = Scale(0, last * 1.1, "asinh", 1.0)
    clean = [(x_of[id(p)], p.loss_clean) for p in known]
    ours = [(x_of[id(p)], p.loss_replaced) for p in known]
    lines = [_line(arms[0], clean, "s-clean"), _line(arms[1], ours, "s-ours")]
    ends = [end for line in lines for bar in line.bars for end in bar]
    said = ", ".join(f"{p.first}-{p.last}: {p.delta_loss}" for p in known[:12])
    chart = line_chart(lines, x, spanning(ends, margin=0.1), f"Loss by {name}; excess {said}")
    caption = tag("figcaption", f"Loss by {name} ", tag("span", "nats per place, 95% intervals", class_="soft"))
    return tag("figure", caption, legend([(line.name, line.look) for line in lines]), chart, class_="chart")


def _line(name: str, points: list, look: str) -> Line:
    return Line(name, [(x, m.value) for x, m in points], look, [(m.low, m.high) for _, m in points], dots=True)


def _positions(positions: Sequence[Positions]) -> Markup:
    rows = [
        (
            f"{p.first}" if p.first == p.last else f"{p.first}–{p.last}",
            figure(p.loss_clean, unit=False),
            figure(p.loss_replaced, unit=False),
            figure(p.delta_loss, sign=True, unit=False),
        )
        for p in positions
    ]
    head = (term("position"), "network, nats", "understudy, nats", term("delta_loss", "excess, nats"))
    body = table("Loss by position", head, rows)
    return tag("details", tag("summary", "The same as a table"), body, class_="more")
