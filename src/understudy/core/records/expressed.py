"""A graph evaluated by its own numbers, as plain data: what it says of its targets, and of edits."""

from understudy.core.records.metric import Metric, Record


class Expressed(Record):
    """One graph of one input, evaluated as an expression: no block of the network runs."""

    selection: str
    nodes: int
    error: Metric
    """|value of a target - the network's|, the mean over targets by their weights; errors and remainders left out."""
    in_place: Metric
    """The same where the network's blocks run with the graph in their place: NotMeasured for targets that are not
    outputs."""
    kl: Metric
    """KL(network || expression) of the choice among the targets alone, each distribution renormalised over them: an
    expression has no other outputs. NotMeasured where the targets are not outputs of one place, or are one."""
    kl_in_place: Metric
    """The same where the network's blocks run with the graph in their place."""
    r2: Metric
    """1 - sum (predicted - live)^2 / sum live^2 of the targets' changes, when latents of the whole graph are removed
    one at a time; live: from the network with nothing frozen. A latent that is not kept is predicted to do nothing."""
    rank: Metric
    """Spearman's correlation of the same."""
    r2_linear: Metric
    """r2 without thresholds: effects add up along all paths. The control that thresholds must beat."""
    r2_in_place: Metric
    """r2 of the same graph run in the network's place under the same edits."""
    than_linear: Metric
    """r2 - r2_linear, paired over edits."""


class Expressions(Record):
    """Sizes and rivals of one graph."""

    edits: int
    """Latents removed, one at a time, the same in every row."""
    whole_error: float
    """Largest |value - clean value| with everything kept, errors and remainders measured: bookkeeping."""
    mass: Metric
    """The network's probability of the targets together: what `kl` sees of the output."""
    rows: list[Expressed]

    def __str__(self) -> str:
        from understudy.core.records.expressed_text import text

        return text(self)
