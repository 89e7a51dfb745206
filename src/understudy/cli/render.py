"""The scorecard in a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.core.records.metric import Measured, Metric
from understudy.core.records.scorecard import Scorecard


def figure(metric: Metric, digits: int = 3) -> str:
    """A value with its interval, short; the reason where it was not measured."""
    if not isinstance(metric, Measured):
        return f"not measured: {metric.not_measured}"
    if metric.low == metric.high:
        return f"{metric.value:.{digits}f}"
    return f"{metric.value:.{digits}f} [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"


def scorecard(card: Scorecard) -> RenderableType:
    """What was replaced, how it behaves, against whom, and where."""
    return Group(*_headline(card), _behaviour(card), Text(), _rivals(card), Text(), _dictionaries(card), *_slices(card))


def _headline(card: Scorecard) -> list[Text]:
    r = card.replaced
    what = f"{len(r.modules)} module{'s' if len(r.modules) != 1 else ''}"
    return [
        Text(f"\nThe understudy of {card.network} on {card.data}", style="bold"),
        Text(
            f"replaced: {what} ({', '.join(r.modules)}): {r.share_of_parameters:.0%} of the parameters without "
            f"embeddings, {r.share_of_compute:.0%} of the compute"
        ),
        Text(f"still original: {', '.join(r.still_original)}"),
        Text(f"{card.sequences} sequences, {card.places:,} scored places; intervals are 95%, over sequences\n"),
    ]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _behaviour(card: Scorecard) -> Table:
    b = card.replacement
    table = Table(box=None, show_header=False, pad_edge=False)
    rows: list[tuple[str, Metric, str]] = [
        ("loss of the network", b.loss_clean, "nats"),
        ("loss with the understudy", b.loss_replaced, "nats"),
        ("delta loss", b.delta_loss, "nats"),
        ("KL(network || understudy)", b.kl, "nats"),
        ("same top choice", b.top1_agreement, ""),
        ("recovered of zero ablation", b.recovered.zero, ""),
        ("recovered of mean ablation", b.recovered.mean, ""),
        ("recovered of position-mean ablation", b.recovered.position_mean, ""),
        ("recovered of resample ablation", b.recovered.resample, ""),
        ("predicts as well as an n-gram of order", b.equivalent_ngram, ""),
        ("equivalent compute", b.equivalent_compute, ""),
        ("drift of its own text (rollout)", card.rollout.delta_loss, "nats"),
    ]
    for name, metric, unit in rows:
        table.add_row(name, f"{figure(metric)} {unit if isinstance(metric, Measured) else ''}".rstrip())
    return table


def _rivals(card: Scorecard) -> Table:
    table = _table("rival", "l0", "delta loss", "worse than the understudy by", "verdict")
    order = sorted(card.baselines.items(), key=lambda item: _value(item[1].replacement.delta_loss))
    for name, rival in order:
        mark = " (oracle)" if rival.is_oracle else ""
        delta, paired = figure(rival.replacement.delta_loss), figure(rival.paired_delta_loss)
        table.add_row(name + mark, figure(rival.l0, 0), delta, paired, rival.verdict)
    table.caption = (
        "An oracle reads what the replaced module itself computes. A verdict needs a paired interval without 0."
    )
    return table


def _value(metric: Metric) -> float:
    return metric.value if isinstance(metric, Measured) else float("inf")


def _dictionaries(card: Scorecard) -> Table:
    table = _table("dictionary", "kind", "latents", "fvu", "l0", "dead", "shrinkage")
    for d in card.dictionaries:
        figures = (figure(d.fvu), figure(d.l0, 1), figure(d.dead), figure(d.shrinkage))
        table.add_row(d.site, d.kind, f"{d.n_latents:,}", *figures)
    return table


def _slices(card: Scorecard) -> list[RenderableType]:
    if not card.slices:
        return []
    table = _table("kind of token", "share", "loss of the network", "delta loss")
    for s in sorted(card.slices, key=lambda s: -_value(s.delta_loss) * s.share if _value(s.delta_loss) < 1e9 else 0):
        table.add_row(s.name, f"{s.share:.1%}", figure(s.loss_clean), figure(s.delta_loss))
    return [Text(), table]
