"""What running a graph costs at each size, as plain data: `understudy run --json`, and curve.json."""

from pydantic import Field

from understudy.core.records.expressed import Expressions
from understudy.core.records.metric import Metric, NotMeasured, Record
from understudy.core.records.scorecard import Slice

GRAPH, RANDOM, ACTIVATION, NEURONS = "graph", "random", "top_activation", "top_neurons"
SELECTIONS = {
    GRAPH: "the graph",
    RANDOM: "random latents that fire",
    ACTIVATION: "latents that write most",
    NEURONS: "the network's own neurons",
}


class Size(Record):
    """One graph, run in the network's place."""

    selection: str
    """How its nodes were chosen: `graph`, `random`, `top_activation`, `top_neurons`."""
    nodes: int
    """Latents kept, of all dictionaries together; a latent counts once, however many places it fires at."""
    l0: Metric
    """Latents on at a place, the mean over dictionaries."""
    loss: Metric
    delta_loss: Metric
    """Loss minus the network's, paired."""
    kl: Metric
    """KL(network || graph) per scored place."""
    top1_agreement: Metric
    kept: Metric
    """Share of the score of everything kept: (baseline - this) / (baseline - all latents), of what `score` names."""
    kept_beyond_linear: Metric
    """The same with the best linear map in the place of the mean ablation: what needs latents at all."""
    against_graph: Metric
    """Loss minus that of the graph of this size, paired: above 0 the graph is better."""
    slices: list[Slice] = Field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`worse` or `better` than the graph where the paired interval excludes 0, else `undecided`."""
        d = self.against_graph
        if isinstance(d, NotMeasured):
            return ""
        return "worse" if d.low > 0 else "better" if d.high < 0 else "undecided"


class GraphCurve(Record):
    """Loss against nodes kept."""

    source: str
    """The run or graph, as it was named."""
    network: str
    data: str
    ranked_by: str
    """The score that chose the graph's nodes, and on what."""
    dropped: str
    """What became of the latents that were not kept: zero, mean, refit, low_rank."""
    score: str
    """What `kept` is a share of."""
    pseudo_features: int = 0
    """Latents of error models, beyond `nodes`, the same in every row."""
    places: int = 0
    sequences: int = 0
    units: int = 0
    """Documents the intervals rest on."""
    share: float = 0.9
    loss_clean: Metric
    everything: Size
    """All latents kept: the replacement."""
    nothing: Size
    """No latent kept: biases alone, treated as `dropped` says."""
    sizes: list[Size]
    enough: dict[str, Metric] = Field(default_factory=dict)
    """By selection, the fewest nodes that keep `share` of the replacement's score, between grid points by log size."""
    enough_beyond_linear: dict[str, Metric] = Field(default_factory=dict)
    """The same beyond the best linear map."""
    notes: dict[str, str] = Field(default_factory=dict)
    expression: Expressions | None = None
    """The same graphs evaluated by their own numbers, where that was asked for (`--expression`)."""

    def rows(self, selection: str) -> list[Size]:
        """One selection's sizes, smallest first."""
        return sorted((s for s in self.sizes if s.selection == selection), key=lambda s: s.nodes)

    def __str__(self) -> str:
        from understudy.core.records.graph_curve_text import text

        return text(self)
