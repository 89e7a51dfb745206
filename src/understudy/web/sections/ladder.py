"""Loss against training compute, and the share understood against size."""

from collections.abc import Sequence

from understudy.core.records.ladder import LadderCard, LadderRow, Understood
from understudy.core.records.metric import Measured
from understudy.web.charts import Level, Line, legend, line_chart
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import count, figure, plain
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, table


def rungs(card: LadderCard) -> Markup:
    """The rungs as a chart and as a table."""
    lead = (
        "Every rung reads the same documents. Between neighbouring rungs the law is a power law; nothing is "
        "extrapolated. Weights saved in the middle of a run have spent their compute at a learning rate that never "
        "fell, so they are worse than what it buys: they are shown, and in no fit."
    )
    rows = [
        (r.name, f"{r.parameters:,}", "?" if r.tokens is None else f"{r.tokens:,}", plain(r.flops),
         figure(r.bits_per_byte, unit=False), "" if r.is_annealed else "not annealed")
        for r in card.rungs
    ]  # fmt: skip
    head = ("rung", "parameters", "tokens", "FLOPs", "bits per byte", "")
    law = tag("p", "Each doubling of compute multiplies bits per byte by ", figure(card.doubling, unit=False), ".")
    body = (_chart(card), table("The rungs", head, rows), law)
    return section("rungs", "Loss against training compute", *body, lead=lead)


def _chart(card: LadderCard) -> Markup | None:
    annealed, others = ([r for r in card.rungs if r.is_annealed is kind] for kind in (True, False))
    lines = [_line("annealed", annealed, "s-ours"), _line("saved in the middle of a run", others, "s-clean")]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    own = card.bits_per_byte
    levels = [Level(card.network, own.value, "ours")] if card.network and isinstance(own, Measured) else []
    xs = [x for line in lines for x, _ in line.points]
    ends = [end for line in lines for bar in line.bars for end in bar] + [level.value for level in levels]
    said = "; ".join(f"{r.name} {r.flops:.2g} FLOPs, {r.bits_per_byte}" for r in card.rungs)
    chart = line_chart(
        lines, Scale(min(xs) / 2, max(xs) * 2, "log"), spanning(ends, margin=0.1), said, _powers(xs), levels
    )
    caption = tag("figcaption", "Bits per byte ", tag("span", "by training compute in FLOPs", class_="soft"))
    return tag("figure", caption, legend([(line.name, line.look) for line in lines]), chart, class_="chart")


def _line(name: str, rows: Sequence[LadderRow], look: str) -> Line:
    known = [(r.flops, r.bits_per_byte) for r in rows if isinstance(r.bits_per_byte, Measured)]
    return Line(name, [(x, m.value) for x, m in known], look, [(m.low, m.high) for _, m in known], dots=True)


def _powers(xs: Sequence[float]) -> list[tuple[float, str]]:
    """Whole powers of ten around the rungs."""
    first, last = (len(f"{x:.0f}") - 1 for x in (min(xs), max(xs)))
    return [
        (10.0**p, "10" + str(p).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))) for p in range(first, last + 1)
    ]


def understood(rows: Sequence[Understood]) -> Markup | None:
    """The share of an ablation's damage that the same recipe avoids, by size of the network."""
    known = [(float(r.parameters), r.recovered) for r in rows if isinstance(r.recovered, Measured)]
    if not known:
        return None
    lead = (
        "One recipe of dictionaries on every rung. If models stayed as simple as they grow, the share would stay "
        "level; if it falls, a recipe that is good enough for small networks is not for large ones."
    )
    points, bars = [(x, m.value) for x, m in known], [(m.low, m.high) for _, m in known]
    line = Line("recovered", points, "s-ours", bars, dots=True)
    x = Scale(points[0][0] / 2, points[-1][0] * 2, "log")
    y = spanning([end for bar in bars for end in bar], margin=0.15)
    said = "; ".join(f"{r.network}: {r.recovered}" for r in rows)
    chart = line_chart([line], x, y, said, [(p, count(p)) for p, _ in points])
    caption = tag(
        "figcaption", "Recovered of mean ablation ", tag("span", "by parameters of the network", class_="soft")
    )
    cells = [
        (r.network, f"{r.parameters:,}", figure(r.loss_clean, unit=False), figure(r.delta_loss, sign=True, unit=False),
         figure(r.recovered), f"{r.l0:.1f}")
        for r in rows
    ]  # fmt: skip
    head = ("network", "parameters", "loss, nats", "excess, nats", "recovered of mean ablation", "L0")
    body = join(tag("figure", caption, chart, class_="chart"), table("The same as a table", head, cells))
    return section("understood", "Share understood against size", body, lead=lead)
