"""The same graphs as expressions: what their own edges and thresholds say, beside the graph run in place."""

from understudy.core.records.expressed import Expressed, Expressions
from understudy.core.records.graph_curve import ACTIVATION, GRAPH, RANDOM, SELECTIONS
from understudy.core.records.metric import Measured, NotMeasured
from understudy.web.charts import Line, legend, line_chart
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import figure, percent
from understudy.web.scales import Scale
from understudy.web.tables import section, table

LINES = {
    "the graph, as an expression": (GRAPH, "", "s0"),
    "the graph, run in place": (GRAPH, "_in_place", "s2"),
    "random latents, as an expression": (RANDOM, "", "s4"),
    "latents that write most, as an expression": (ACTIVATION, "", "s6"),
}
"""What is drawn: selection, which of the two figures, look."""


def expressions(found: Expressions) -> Markup:
    """The section, for `curve.html`."""
    keys = legend([(name, look) for name, (_, _, look) in LINES.items()])
    charts = [
        _chart(found, "kl", "kl_in_place", "KL among the targets, nats"),
        _chart(found, "r2", "r2_in_place", "R2 of edits, share of the targets' change"),
    ]
    lead = "Latents from latents alone, by edges and thresholds; no block of the network runs."
    return section("expression", "As expressions", keys, *charts, _table(found), _notes(found), lead=lead)


def _chart(found: Expressions, alone: str, in_place: str, title: str) -> Markup:
    lines = []
    for name, (selection, where, look) in LINES.items():
        rows = sorted((r for r in found.rows if r.selection == selection), key=lambda r: r.nodes)
        figures = [(r.nodes, getattr(r, in_place if where else alone)) for r in rows]
        points = [(n, m) for n, m in figures if isinstance(m, Measured)]
        bars = [(m.low, m.high) for _, m in points]
        lines.append(Line(name, [(float(n), m.value) for n, m in points], look, bars, dots=True))
    lines = [line for line in lines if line.points]
    if not lines:
        return tag("p", title, ": not measured.")
    nodes, values = ([p[i] for line in lines for p in line.points] for i in (0, 1))
    ends = [v for line in lines for bar in line.bars for v in bar]
    low, high = min(0.0, *values, *ends), max(*values, *ends, 1e-9)
    said = "; ".join(f"{line.name}: {line.points[-1][1]:.3g} at {line.points[-1][0]:.0f} nodes" for line in lines)
    y = Scale(low, high + 0.05 * (high - low))
    picture = line_chart(lines, Scale(min(nodes), max(nodes), "log"), y, f"{title}, by nodes kept. {said}")
    caption = tag("figcaption", title, " ", tag("span", "by nodes kept", class_="soft"))
    return tag("figure", caption, picture, class_="chart")


def _table(found: Expressions) -> Markup:
    head = ["Chosen by", "Nodes", "Off by", "in place", "KL", "in place", "R2 of edits", "in place", "linear", "Rank"]
    return table("The same graphs as expressions", head, [_row(r) for r in found.rows])


def _row(row: Expressed) -> list[Child]:
    shown = (row.error, row.in_place, row.kl, row.kl_in_place, row.r2, row.r2_in_place, row.r2_linear, row.rank)
    cells = [figure(m, unit=False) if isinstance(m, Measured) else "" for m in shown]
    return [SELECTIONS[row.selection], f"{row.nodes:,}", *cells]


def _notes(found: Expressions) -> Markup:
    if isinstance(found.mass, NotMeasured):
        kl: Child = f"No KL: {found.mass.not_measured}."
    else:
        kl = join("KL is over the targets alone, ", percent(found.mass.value), " of the network's probability.")
    notes = [
        kl,
        f"R2 of edits: the targets' changes against the live network's, {found.edits} latents removed one at a time; "
        "below 0 is worse than predicting that nothing happens.",
        "In place: the same of the graph run in the network's place. Linear: R2 of the expression without thresholds.",
    ]
    return tag("ul", *(tag("li", note) for note in notes), class_="notes")
