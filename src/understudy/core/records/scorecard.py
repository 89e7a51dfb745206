"""Scorecard: how well the understudy plays the part, as plain data. What `evaluate --json` prints is this."""

from pydantic import Field

from understudy.core.records.metric import Metric, NotMeasured, Record


class Replaced(Record):
    """What was taken out, and what still runs as original: no headline without it."""

    modules: list[str]
    rewritten: list[str] = Field(default_factory=list)
    """Sites whose activation is rewritten while the module that makes it still runs (an SAE)."""
    share_of_parameters: float
    """Of the network's parameters without embedding and output head."""
    share_of_compute: float
    """Of the FLOPs of one forward pass."""
    still_original: list[str]
    skip_first: int = 0
    """Places at the start of each sequence where the network's own activations stay and nothing is scored."""


class DictionaryRow(Record):
    """One dictionary's local figures, on the network's own activations."""

    site: str
    name: str = ""
    """The site's short name, where it has one."""
    kind: str
    n_latents: int
    fvu: Metric
    l0: Metric
    dead: Metric
    shrinkage: Metric
    largest_norm: Metric = NotMeasured(not_measured="not looked at")
    """The largest norm of an activation over the median norm, places that do not count included."""
    density: tuple[int, ...] = ()
    """Histogram of log10(firing rate) of live latents over the bins of `density_edges`."""
    density_edges: tuple[float, ...] = ()


class Recovered(Record):
    """Share of an ablation's damage that is avoided; 1 = as good as the network, 0 = as bad as the ablation."""

    zero: Metric
    mean: Metric
    position_mean: Metric
    resample: Metric


class Behaviour(Record):
    """How the network behaves with an arm in place. Losses in nats per scored place."""

    loss_clean: Metric
    loss_replaced: Metric
    delta_loss: Metric
    kl: Metric
    """KL(network || replaced) per scored place."""
    top1_agreement: Metric
    recovered: Recovered
    equivalent_ngram: Metric
    equivalent_compute: Metric


class Rival(Record):
    """A rival dictionary at the measured L0."""

    l0: Metric
    replacement: Behaviour
    paired_delta_loss: Metric
    """loss with the rival - loss with the understudy, same sequences: above 0 = the understudy is better."""
    is_oracle: bool = False
    """True if it reads what the replaced module itself computes."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`worse` or `better` than the understudy where the paired interval excludes 0, else `undecided`."""
        d = self.paired_delta_loss
        if isinstance(d, NotMeasured):
            return "not measured"
        return "worse" if d.low > 0 else "better" if d.high < 0 else "undecided"


class Slice(Record):
    """The same figures on a labelled share of the places."""

    name: str
    """The label."""
    column: str = "kind"
    """What it is a label of: a column of the data, or `kind`, what the predicted token is to Python."""
    share: float
    """Of the scored places."""
    loss_clean: Metric
    loss_replaced: Metric
    delta_loss: Metric


class Positions(Record):
    """The same by position in the sequence, [first, last] inclusive."""

    first: int
    last: int
    loss_clean: Metric
    loss_replaced: Metric
    delta_loss: Metric


class Rollout(Record):
    """Free-running generation: each writes its own text from the same prompts; the clean network reads both."""

    prompts: int = 0
    prompt_length: int = 0
    length: int = 0
    loss_of_network_text: Metric = NotMeasured(not_measured="not run")
    """Loss of the clean network on what the network wrote."""
    loss_of_replaced_text: Metric = NotMeasured(not_measured="not run")
    """Loss of the clean network on what the understudy wrote: it rises when the understudy drifts."""
    delta_loss: Metric = NotMeasured(not_measured="not run")
    by_position: tuple[Positions, ...] = ()
    samples: tuple[dict[str, str], ...] = ()


class Acting(Record):
    """Episodes in the network's environment, played with its parts and with the understudy's. Returns in the
    environment's units, an episode."""

    episodes: int = 0
    of_network: Metric = NotMeasured(not_measured="not run")
    of_understudy: Metric = NotMeasured(not_measured="not run")
    of_random_actions: Metric = NotMeasured(not_measured="not run")
    difference: Metric = NotMeasured(not_measured="not run")
    """The understudy's return - the network's, episode by episode."""
    recovered: Metric = NotMeasured(not_measured="not run")
    """(understudy - random actions) / (network - random actions): 1 = as good as the network."""


class Scorecard(Record):
    """Everything `understudy evaluate` says of a run."""

    run: str
    network: str
    data: str
    places: int = 0
    """Scored places."""
    sequences: int = 0
    units: int = 0
    """Independent units the intervals rest on: documents where known, else sequences."""
    replaced: Replaced
    dictionaries: list[DictionaryRow]
    replacement: Behaviour
    baselines: dict[str, Rival]
    slices: list[Slice]
    positions: list[Positions]
    rollout: Rollout
    acting: Acting = Acting()
    """For networks that act in an environment."""
    ngram_losses: dict[str, Metric] = Field(default_factory=dict)
    """Loss of interpolated n-gram models on the same places, by order."""
    ngram_tokens: int = 0
    """Tokens of the run's training split that the n-gram models were counted on."""
    warnings: tuple[str, ...] = ()
    """What a reader must know before any figure, such as a dictionary that does worse than a constant."""
    thresholds: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Before and after the conversion to per-latent thresholds: fvu, l0, delta_loss."""

    def __str__(self) -> str:
        from understudy.core.records.summary import summary

        return summary(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from understudy.core.records.summary import html

        return html(self)


class Token(Record):
    text: str
    activation: float


class Image(Record):
    """A picture that contexts show."""

    png: str
    """The file in base64."""
    height: int
    width: int
    """Pixels."""


class Picture(Record):
    """A picture with a latent's activation at the places of a grid over it."""

    image: int
    """Number among the report's images."""
    rows: int
    columns: int
    """Of the grid; 1 and 1 where the site has one place for the whole picture."""
    cells: list[tuple[int, int, float]]
    """Row, column and activation where the latent is on."""
    before: list[float] = Field(default_factory=list)
    """Activations at places that lie on no part of the picture (class tokens), 0 where silent."""
    peak: tuple[int, int] | None
    """Row and column of the place the context was chosen for; None where that lies on no part of the picture."""
    activation: float
    """There."""
    label: str = ""
    """Class of the picture, where it is known."""


class Context(Record):
    """What surrounds one place where a latent was looked at: a stretch of text, or a picture."""

    band: str
    """Where in the latent's range the middle token lies: `top`, `90-99%`, `50-90%`, `0-50%`."""
    tokens: list[Token]
    peak: int
    """Index of the token the context was chosen for; -1 where there are none."""
    picture: Picture | None = None


class Claim(Record):
    """What somebody else says that a latent means. Nothing here measured it."""

    text: str
    explainer: str
    """The model that wrote the text; empty where the file does not say."""
    method: str
    """How it was asked, by the name its maker gives; empty where the file does not say."""
    source: str
    """Their name of the dictionary, e.g. `gemma-2-2b/20-gemmascope-res-16k`."""
    file: str


class Feature(Record):
    """One latent, as the report shows it."""

    dictionary: str
    latent: int
    density: float
    """Share of places where it is on."""
    maximum: float
    raises: list[tuple[str, float]]
    """Outputs its atom raises most through the direct path (change of the logit for one unit, centred over outputs)."""
    lowers: list[tuple[str, float]]
    contexts: list[Context]
    classes: list[tuple[str, float]] = Field(default_factory=list)
    """Of pictures: classes by their share of the latent's summed activation, the largest first."""
    claims: list[Claim] = Field(default_factory=list)
    """Explanations of others, where a file of them was given."""


class CurvePoint(Record):
    """One line of metrics.jsonl: places seen and the terms of the loss by group."""

    places: int
    terms: dict[str, dict[str, float]]


class Report(Record):
    """All a report page shows."""

    scorecard: Scorecard
    features: dict[str, list[Feature]]
    """By dictionary site."""
    curves: list[CurvePoint]
    provenance: dict[str, str]
    images: list[Image] = Field(default_factory=list)
    """Pictures that contexts of features show."""
