"""Training curves as small multiples, and what the conversion to thresholds cost."""

import math

from understudy.core.records.scorecard import CurvePoint, Report
from understudy.web.charts import Line, legend, line_chart
from understudy.web.glossary import TERMS, term
from understudy.web.markup import Markup, join, tag
from understudy.web.names import layer_names
from understudy.web.numerals import number, plain
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, table

LOOKS = 8
TITLES = {
    "fvu": "FVU",
    "l0": "L0, latents per place",
    "dead": "Dead, share of latents",
    "lr": "Learning rate",
    "aux": "Auxiliary loss",
}


def training(report: Report) -> Markup | None:
    """Curves by term of the loss, one line per group; then the table of thresholds."""
    curves = _curves(report.curves) if len(report.curves) > 1 else None
    thresholds = _thresholds(report.scorecard.thresholds) if report.scorecard.thresholds else None
    if curves is None and thresholds is None:
        return None
    places = report.curves[-1].places if report.curves else 0
    lead = f"{places:,} places seen. Counted in places, never in steps." if places else None
    return section("training", "Training", curves, thresholds, lead=lead)


def _curves(curves: list[CurvePoint]) -> Markup:
    groups = list(dict.fromkeys(group for point in curves for group in point.terms))
    looks = {group: f"s{round(i * (LOOKS - 1) / max(1, len(groups) - 1))}" for i, group in enumerate(groups)}
    found = list(dict.fromkeys(t for point in curves for terms in point.terms.values() for t in terms if "/" not in t))
    order = [t for t in TITLES if t in found] + [t for t in found if t not in TITLES]
    charts = [chart for t in order if (chart := _chart(t, curves, looks)) is not None]
    names = layer_names(groups)
    keys = legend([(names[group], looks[group]) for group in groups])
    return join(keys, tag("div", *charts, class_="cards"))


def _chart(name: str, curves: list[CurvePoint], looks: dict[str, str]) -> Markup | None:
    series = {
        group: [
            (float(p.places), p.terms[group][name])
            for p in curves
            if group in p.terms and math.isfinite(p.terms[group].get(name, math.nan))
        ]
        for group in looks
    }
    lines = [Line(group, points, looks[group]) for group, points in series.items() if len(points) > 1]
    values = [value for line in lines for _, value in line.points]
    if not values:
        return None
    positive = [v for v in values if v > 0]
    wide = name not in ("lr", "l0", "dead") and len(positive) == len(values) and max(values) > 20 * min(values)
    y = Scale(min(values) * 0.9, max(values) * 1.1, "log") if wide else spanning(values, zero=min(values) >= 0)
    x = Scale(min(x for line in lines for x, _ in line.points), max(x for line in lines for x, _ in line.points))
    ends = "; ".join(f"{line.name} ends at {plain(line.points[-1][1])}" for line in lines)
    chart = line_chart(lines, x, y, f"{TITLES.get(name, name)} by places seen: {ends}", height=170)
    label = term(name, TITLES.get(name)) if name in TERMS else TITLES.get(name, name)
    caption = tag("figcaption", label, tag("span", ", logarithmic" if wide else "", class_="soft"))
    return tag("figure", caption, chart, class_="chart small")


def _thresholds(thresholds: dict[str, dict[str, float | None]]) -> Markup:
    columns = list(dict.fromkeys(key for row in thresholds.values() for key in row))
    names = layer_names(list(thresholds))
    rows = [
        (join(names[group], " ", tag("code", group)), *(_cell(column, row) for column in columns))
        for group, row in thresholds.items()
    ]
    head = ["group", *(_heading(column) for column in columns)]
    title = tag("h3", term("thresholds", "Before and after thresholds"), id="thresholds")
    return join(title, table("Each group before and after its rule became thresholds", head, rows))


def _heading(column: str) -> Markup:
    base, _, when = column.rpartition("_")
    if when not in ("before", "after"):
        base, when = column, ""
    named = term(base, TERMS[base][0] + (", nats" if base == "delta_loss" else "")) if base in TERMS else join(base)
    return join(named, f" {when}" if when else None)


def _cell(column: str, row: dict[str, float | None]) -> Markup | str:
    value = row.get(column)
    if value is None or not math.isfinite(value):
        return tag("span", "not measured", class_="missing")
    return number(value, 3, sign=True) if column.startswith("delta_loss") else plain(value)
