"""What a computation graph says about itself, as plain data: `graph.json` of an `.acg` folder."""

from typing import Literal

from pydantic import Field

from understudy.core.records.metric import Metric, NotMeasured, Record

KINDS = ("input", "bias", "error", "latent", "target")
"""Kinds of nodes; a node's `kind` is an index into this."""

NOT_CHECKED = NotMeasured(not_measured="not checked yet: graph.check(n) intervenes on n edges")


class DictionaryCard(Record):
    """Which dictionary a graph's latents belong to."""

    kind: str
    reads: list[str]
    writes: list[str]
    n_latents: int
    fingerprint: str
    """Hash of its arrays; a graph is run with the same dictionaries only."""
    name: str = ""
    """Short name of what it replaces (`mlp.3`), where it has one."""


class TargetCard(Record):
    """What a target node stands for."""

    name: str
    """`' return' (p=0.31)`, `' a' - ' b'`, `mlp.3/174@12`, ..."""
    weight: float
    """Share of influence that starts here; the weights of all targets sum to 1."""
    output: int | None = None
    """Index of the output (token, action, class), where it is one."""
    probability: float | None = None


class Frozen(Record):
    """Operations that were held at their clean value so that what lies between the nodes is linear."""

    rule: str
    """`attention pattern`, `norm scale`, `gate`, `activation ratio`, ..."""
    operation: str
    modules: list[str]
    share: Metric
    """Share of the targets' variation under live ablations that is lost by freezing these."""


class Certificate(Record):
    """The bookkeeping: what is true of the frozen network by construction, measured."""

    exact: bool
    """All three errors are below `tolerance`."""
    row_sum_error: float
    """Largest |sum of a row + remainder - pre-activation|, relative to the largest |pre-activation|."""
    clamp_error: float | None
    """Largest |edges - change in a frozen forward pass in which one source is doubled|, relative to that source's
    largest edge. None where nothing was frozen (integrated gradients)."""
    second_derivative: float | None
    """Largest |f(x + u) - f(x) - f(u) + f(0)| of the frozen network for random u, relative to its largest value."""
    tolerance: float
    frozen: list[Frozen]


class Live(Record):
    """The truth: predicted edges against interventions on the network with nothing frozen."""

    slope: Metric = NOT_CHECKED
    """Measured change regressed on predicted change, through 0; 1 is perfect."""
    r2: Metric = NOT_CHECKED
    """1 - sum (measured - predicted)^2 / sum measured^2, over all removed latents: those with large norms decide it."""
    r2_median: Metric = NOT_CHECKED
    """The median of the removed latents' own R2, over those that changed anything; n counts these."""
    r2_scaled: Metric = NOT_CHECKED
    """R2 with the edges of every removed latent multiplied by the slope of the others: how much of what is wrong is one
    factor for all. The interval holds these slopes fixed."""
    rank: Metric = NOT_CHECKED
    """Spearman's correlation of predicted and measured changes."""


class GraphCard(Record):
    """Where a graph comes from and what was asked."""

    network: str
    network_fingerprint: str
    run: str | None
    """Folder of the run its dictionaries come from, as it was named."""
    dictionaries: list[DictionaryCard]
    sites: list[str]
    """Nodes name sites by index into this."""
    site_names: list[str] = Field(default_factory=list)
    """Short names of `sites`, where they have any."""
    inputs: dict[str, list[int]] = Field(default_factory=dict)
    """Token ids of the input, where it has any."""
    tokens: list[str] = Field(default_factory=list)
    """One string a place, for people."""
    shape: tuple[int, ...]
    """Places of the one input, without the batch axis."""
    targets: list[TargetCard]
    certificate: Certificate | None = None
    live: Live = Live()
    note: str = ""
    """What was left out: latents beyond the limit, layers without a dictionary."""


class GraphScores(Record):
    """How much of a graph's influence is explained: exact for this graph, and no evidence of behaviour."""

    nodes: int
    edges: int
    kinds: dict[str, int]
    """How many nodes of each kind."""
    replacement: Metric
    """inputs / (inputs + errors + remainder): of the influence that ends at one of them, what ends at inputs."""
    completeness: Metric
    """Share of what flows into nodes, weighted by their influence, that is neither an error's nor the remainder's."""
    inputs: Metric
    """Share of the targets' influence that ends at inputs; with biases, errors and remainder it makes 1."""
    biases: Metric
    errors: Metric
    remainder: Metric


NodeKind = Literal["input", "bias", "error", "latent", "target"]
