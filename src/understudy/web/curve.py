"""The curve of `understudy run` as one page that needs nothing else."""

from understudy.core.records.graph_curve import GRAPH, SELECTIONS, GraphCurve, Size
from understudy.core.records.metric import Measured
from understudy.web.charts import Level, Line, legend, line_chart
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import figure, percent
from understudy.web.page import document
from understudy.web.scales import Scale
from understudy.web.sections.expressions import expressions
from understudy.web.sections.rivals import VERDICTS
from understudy.web.tables import section, table

LOOKS = {name: f"s{2 * i}" for i, name in enumerate(SELECTIONS)}


def render(curve: GraphCurve) -> str:
    """The page for `curve`. Every text in it is escaped."""
    said = [] if curve.expression is None else [expressions(curve.expression)]
    parts = [_pictures(curve), _table(curve), *said, _enough(curve), _how(curve)]
    return document(
        f"Understudy: graphs of {curve.source}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "Understudy ", tag("span", curve.source), class_="kicker"),
            tag("h1", "How small a graph can stand in", id="verdict"),
            tag("p", _sentence(curve), class_="against"),
            class_="headline",
        ),
        tag("main", *parts, id="main"),
    )


def _sentence(curve: GraphCurve) -> Markup:
    if not curve.enough:
        return join("Kept is a share of ", curve.score, ".")
    found = curve.enough.get(GRAPH)
    if not isinstance(found, Measured):
        return join("Nodes that keep ", percent(curve.share), " of the replacement's score: ", _figure(found))
    return join(
        figure(found), f" of {curve.everything.nodes:,} keep ", percent(curve.share),
        " of the replacement's score over a mean ablation.",
    )  # fmt: skip


def _figure(metric) -> Child:
    return figure(metric) if metric is not None else "not run"


def _pictures(curve: GraphCurve) -> Markup:
    shown = {name: rows for name in SELECTIONS if (rows := curve.rows(name))}
    keys = legend([(SELECTIONS[name], LOOKS[name]) for name in shown])
    charts = [
        _chart(curve, shown, "delta_loss", "Excess loss, nats per place"),
        _chart(curve, shown, "kl", "KL from the network, nats per place"),
        _chart(curve, shown, "top1_agreement", "Same most likely output, share of places"),
    ]
    lead = "Every graph runs alone: what it does not keep is not there. Bars are 95% intervals."
    return section("curve", "Cost against nodes kept", keys, *charts, lead=lead)


def _chart(curve: GraphCurve, shown: dict[str, list[Size]], what: str, title: str) -> Markup:
    lines = []
    for name, rows in shown.items():
        found = [(r.nodes, m) for r in rows if isinstance(m := getattr(r, what), Measured)]
        points = [(float(n), m.value) for n, m in found]
        lines.append(Line(SELECTIONS[name], points, LOOKS[name], [(m.low, m.high) for _, m in found], dots=True))
    lines = [line for line in lines if line.points]
    if not lines:
        return tag("p", title, ": not measured.")
    whole = getattr(curve.everything, what)
    levels = [Level("all latents", whole.value, "clean")] if isinstance(whole, Measured) else []
    values = [v for line in lines for bar in line.bars for v in bar] + [level.value for level in levels]
    x = Scale(min(p[0] for line in lines for p in line.points), max(p[0] for line in lines for p in line.points), "log")
    y = Scale(min(0.0, *values), max(values) * 1.05)
    ends = "; ".join(f"{line.name}: {line.points[-1][1]:.3g} at {line.points[-1][0]:.0f} nodes" for line in lines)
    picture = line_chart(lines, x, y, f"{title}, by nodes kept. {ends}", levels=levels)
    caption = tag("figcaption", title, " ", tag("span", "by nodes kept", class_="soft"))
    return tag("figure", caption, picture, class_="chart")


def _table(curve: GraphCurve) -> Markup:
    head = [
        "Chosen by",
        "Nodes",
        "L0",
        "Excess loss",
        "KL",
        "Top-1",
        "Kept",
        "Kept beyond linear",
        "Minus the graph's",
        "",
    ]
    rows = [_row("nothing kept", curve.nothing)]
    rows += [_row(SELECTIONS[name], size) for name in SELECTIONS for size in curve.rows(name)]
    rows.append(_row("all latents", curve.everything))
    return section("sizes", "Every graph", table("Graphs on the same places", head, rows))


def _row(name: str, size: Size) -> list[Child]:
    said, look = VERDICTS[size.verdict] if size.verdict else ("", "")
    said = {"understudy better": "graph better"}.get(said, said)
    against = size.against_graph
    return [
        name, f"{size.nodes:,}", figure(size.l0, unit=False), figure(size.delta_loss, sign=True, unit=False),
        figure(size.kl, unit=False), figure(size.top1_agreement), figure(size.kept), figure(size.kept_beyond_linear),
        figure(against, sign=True, unit=False) if isinstance(against, Measured) else "",
        tag("span", said, class_=f"verdict {look}") if said else "",
    ]  # fmt: skip


def _enough(curve: GraphCurve) -> Markup:
    head = ["Chosen by", "over a mean ablation", "beyond the best linear map"]
    rows = [
        [SELECTIONS[name], figure(found), _figure(curve.enough_beyond_linear.get(name))]
        for name, found in curve.enough.items()
    ]
    title = f"Nodes that keep {percent(curve.share)} of the replacement's score"
    lead = "Where the curve first gets there, between the sizes that were run by the logarithm of nodes."
    return section("enough", title, table(title, head, rows), lead=lead)


def _how(curve: GraphCurve) -> Markup:
    notes = [
        f"Graph: {curve.ranked_by}.", f"What was dropped: {curve.dropped}.",
        f"{curve.sequences} sequences of {curve.data}, {curve.places:,} scored places, {curve.units} documents.",
        *curve.notes.values(),
    ]  # fmt: skip
    return section("how", "How", tag("ul", *(tag("li", note) for note in notes), class_="notes"))
