"""A curve as text, at most 100 columns wide: what `understudy run` prints and a notebook shows."""

from understudy.core.records.graph_curve import SELECTIONS, GraphCurve, Size
from understudy.core.records.metric import Measured, Metric
from understudy.core.records.summary import figure, table

TREATED = {
    "zero": "dropped latents write nothing",
    "mean": "dropped latents write their mean over training data",
    "refit": "the kept latents' decoders and biases are refitted on training data",
    "low_rank": "an affine model of the error, fitted on training data, stands beside the kept latents",
}


def text(curve: GraphCurve) -> str:
    """What was run, the table of sizes, and how small a graph is enough."""
    parts = [_headline(curve), _sizes(curve), _enough(curve), *curve.notes.values()]
    if curve.expression is not None:
        parts.append(str(curve.expression))
    return "\n\n".join(parts)


def _headline(curve: GraphCurve) -> str:
    lines = [f"Graphs of {curve.source}", f"run in the place of {curve.network}, on {curve.data}"]
    if isinstance(curve.loss_clean, Measured):
        over = f"{curve.units} documents" if curve.units < curve.sequences else "sequences"
        lines.append(f"{curve.sequences} sequences, {curve.places:,} scored places; intervals are 95%, over {over}")
        lines.append(f"loss of the network itself {figure(curve.loss_clean)} nats")
    lines.append(TREATED[curve.dropped] + (f": {curve.pseudo_features} directions" if curve.pseudo_features else ""))
    return "\n".join(lines)


def _sizes(curve: GraphCurve) -> str:
    head = ["chosen by", "nodes", "l0", "delta loss", "kl", "same top", "kept", "than the graph"]
    rows = [_row("nothing kept", curve.nothing)]
    for selection in SELECTIONS:
        rows += [_row(selection, s) for s in curve.rows(selection)]
    rows.append(_row("all latents", curve.everything))
    return table(head, rows)


def _row(name: str, size: Size) -> list[str]:
    delta = figure(size.delta_loss, 2) if isinstance(size.delta_loss, Measured) else "-"
    return [
        name, f"{size.nodes:,}", _short(size.l0, 1), delta, _short(size.kl, 2), _short(size.top1_agreement, 3),
        _short(size.kept, 3), size.verdict,
    ]  # fmt: skip


def _enough(curve: GraphCurve) -> str:
    if not curve.enough:
        return f"kept: share of {curve.score}"
    lines = [f"nodes that keep {curve.share:.0%} of {curve.score}:"]
    lines += [f"  {name:<16}{_count(found)}" for name, found in curve.enough.items()]
    lines += [f"nodes that keep {curve.share:.0%} of what it adds to the best linear map:"]
    lines += [f"  {name:<16}{_count(found)}" for name, found in curve.enough_beyond_linear.items()]
    return "\n".join(lines)


def _count(metric: Metric) -> str:
    return figure(metric, 0)


def _short(metric: Metric, digits: int) -> str:
    return f"{metric.value:.{digits}f}" if isinstance(metric, Measured) else "-"
