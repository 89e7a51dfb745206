"""Expressions as text, at most 100 columns wide."""

from understudy.core.records.expressed import Expressed, Expressions
from understudy.core.records.metric import Measured, Metric
from understudy.core.records.summary import figure, table


def text(found: Expressions) -> str:
    """The table of sizes; below it, what its columns are."""
    head = ["chosen by", "nodes", "target off by", "in place", "R2 of edits", "rank", "in place", "linear"]
    return (
        "As expressions: latents from latents alone, no block of the network runs\n"
        f"{table(head, [_row(r) for r in found.rows])}\n"
        f"R2 of edits: the targets' changes against the live network's, {found.edits} latents removed one at a time; "
        "in place: of\nthe graph run in the network's place; linear: of the expression without thresholds"
    )


def _row(row: Expressed) -> list[str]:
    rest = (row.rank, row.r2_in_place, row.r2_linear)
    edits = figure(row.r2, 2) if isinstance(row.r2, Measured) else "-"
    return [row.selection, f"{row.nodes:,}", _short(row.error), _short(row.in_place), edits, *map(_short, rest)]


def _short(metric: Metric) -> str:
    return f"{metric.value:.2f}" if isinstance(metric, Measured) else "-"
