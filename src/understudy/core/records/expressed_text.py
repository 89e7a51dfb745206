"""Expressions as text, at most 100 columns wide."""

from understudy.core.records.expressed import Expressed, Expressions
from understudy.core.records.metric import Measured, Metric, NotMeasured
from understudy.core.records.summary import figure, table


def text(found: Expressions) -> str:
    """The table of sizes; below it, what its columns are."""
    head = ["chosen by", "nodes", "off by", "in place", "KL", "in place", "R2 of edits", "rank", "in place", "linear"]
    return (
        "As expressions: latents from latents alone, no block of the network runs\n"
        f"{table(head, [_row(r) for r in found.rows])}\n"
        f"off by: the targets, in {_unit(found)}; {_kl(found)}\n"
        f"R2 of edits: the targets' changes against the live network's, {found.edits} latents removed one at a time\n"
        "in place: the same of the graph run in the network's place; linear: R2 of the expression without thresholds"
    )


def _unit(found: Expressions) -> str:
    return next((r.error.unit for r in found.rows if isinstance(r.error, Measured)), "their own unit")


def _kl(found: Expressions) -> str:
    """What KL is over, or why there is none."""
    if isinstance(found.mass, NotMeasured):
        return f"no KL: {found.mass.not_measured}"
    return f"KL: nats, among the targets alone, {found.mass.value:.0%} of the network's probability"


def _row(row: Expressed) -> list[str]:
    before = (row.error, row.in_place, row.kl, row.kl_in_place)
    after = (row.rank, row.r2_in_place, row.r2_linear)
    edits = figure(row.r2, 2) if isinstance(row.r2, Measured) else "-"
    return [row.selection, f"{row.nodes:,}", *map(_short, before), edits, *map(_short, after)]


def _short(metric: Metric) -> str:
    return f"{metric.value:.2f}" if isinstance(metric, Measured) else "-"
