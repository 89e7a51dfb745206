"""Where the lost nats are, as plain data. What `understudy holes --json` prints is this."""

from pydantic import Field

from understudy.core.records.metric import Metric, Record

EVERYWHERE = "all at once"
"""The arm in which every group is in place."""


class Cell(Record):
    """What one arm loses in one part of the scored places."""

    arm: str
    """`all at once`, or the site that alone is replaced."""
    slice: str = ""
    """A label, as `kind = string` where there are several columns of labels; empty: whatever the label."""
    first: int | None = None
    last: int | None = None
    """Range of positions, both included; None: wherever."""
    share: float
    """Of the scored places."""
    delta_loss: Metric
    """Nats per place of the part."""
    adds: Metric
    """The same over all scored places: what the part adds to the whole. Parts that do not overlap add up."""


class Directions(Record):
    """How much of a site's error lies in its first few directions, found on training text."""

    rank: int
    share: Metric
    """Of the squared error on held-out text."""
    chance: float
    """The share that an error without direction would have: rank / width."""


class SiteError(Record):
    """The error at one written site, on the network's own activations."""

    site: str
    name: str
    width: int
    directions: list[Directions]
    predictable: Metric
    """R2 on held-out rows of a linear map from what the dictionary reads to what it misses."""
    control: Metric
    """The same with inputs shuffled among the rows it was fitted on: 0 is chance."""


class Returned(Record):
    """The error's first directions, measured on a clean pass, are put back."""

    rank: int
    recovered: Metric
    """Share of the delta loss that goes away; 1 is as good as the network. An analysis, not evidence: it reads the
    clean network's activations."""


class SiteHoles(Record):
    """One group: its sites replaced alone, and last."""

    name: str
    alone: Metric
    """Delta loss with nothing else replaced."""
    last: Metric
    """Delta loss of all groups minus that of all but this one: what it adds once the others are in place."""
    errors: list[SiteError]
    returned: list[Returned]
    """With this group alone in place."""


class Concentration(Record):
    """Whether few places carry the loss."""

    places: float
    """Share of the scored places: those that lose most."""
    of_excess: Metric
    """What they lose, over the net loss of all places. Above 1 where the rest gain; the cut is held fixed."""


class LostToken(Record):
    """A token and what predicting it lost: loss with all groups in place minus loss of the network, in nats."""

    text: str
    lost: float
    clean: float
    """The network's own loss."""


class WorstPlace(Record):
    """One of the places that lose most."""

    before: str
    token: LostToken
    position: int
    slices: list[str]


class WorstSequence(Record):
    """One of the sequences that lose most. Chosen for it: what it lost is no estimate of anything else."""

    sequence: int
    """Its number in the held-out data."""
    places: int
    delta_loss: float
    """Nats per place."""
    tokens: list[LostToken]


class Holes(Record):
    """Everything `understudy holes` says of a run."""

    run: str
    network: str
    data: str
    sequences: int
    units: int
    places: int
    loss_clean: Metric
    loss_replaced: Metric
    delta_loss: Metric
    """All groups at once."""
    sum_alone: Metric
    """The delta losses of the groups, each alone, summed."""
    interaction: Metric
    """delta_loss - sum_alone: above 0 the errors feed on each other, below 0 they cancel or overlap."""
    sites: list[SiteHoles]
    returned: list[Returned]
    """At every site at once."""
    by_slice: list[Cell]
    by_position: list[Cell]
    cells: list[Cell]
    """Site x slice x position: the parts that add most, chosen from `n_cells` of them."""
    n_cells: int
    concentration: list[Concentration]
    worst_places: list[WorstPlace]
    worst_sequences: list[WorstSequence]
    fit_rows: int
    """Rows of training text that directions and linear maps were fitted on."""
    notes: list[str] = Field(default_factory=list)

    def __str__(self) -> str:
        from understudy.core.records.holes_text import text

        return text(self)
