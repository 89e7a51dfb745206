"""How loss and the best learning rate go with width, as plain data: `understudy scale --json`, and scale.json."""

from pydantic import Field

from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.summary import figure, table

NAMES = {
    "a": "ln FVU at the middle of the grid",
    "b_k": "exponent of L0 there",
    "b_n": "exponent of n there",
    "g": "what ln n adds to the exponent of L0",
}


class Cost(Record):
    """One run of the grid, mean over seeds."""

    n_latents: int
    k: int
    """Latents asked for at a place."""
    lr: float
    l0: Metric
    """Measured; what the law is fitted on."""
    fvu: Metric
    left_out: Metric
    """What the law fitted without this run predicts for it, over what it measured, minus 1."""


class BestRate(Record):
    """Learning rates at one width: the FVU of each, and the one of least FVU."""

    n_latents: int
    fvu: dict[str, Metric]
    """By learning rate."""
    best: Metric


class Prediction(Record):
    """The next width: what the law says, what training measured."""

    n_latents: int
    k: int
    lr: float
    l0: Metric
    predicted: Metric
    measured: Metric
    off: Metric
    """Measured over predicted, minus 1, paired over documents."""


class ScaleCard(Record):
    """L(n, k) and the learning rate by n, from a small grid, and how well they predict the next width."""

    network: str
    site: str
    kind: str
    rule: str
    data: str
    places: int
    sequences: int
    units: int
    seeds: int
    grid: list[Cost]
    middle: tuple[float, float]
    """L0 and n of the middle of the grid, which the law is counted from."""
    law: dict[str, Metric]
    """ln FVU = a + b_k ln(L0 / middle) + b_n ln(n / middle) + g ln(L0 / middle) ln(n / middle)."""
    left_out: Metric
    """The largest of the grid's `left_out`, as a size."""
    rates: list[BestRate]
    rate_slope: Metric
    """Exponent of n in the best learning rate."""
    next_rate: Metric
    """What that predicts for the next width."""
    next_rate_measured: Metric
    predictions: list[Prediction]
    notes: list[str] = Field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The largest miss at the next width, beside that of runs left out of the grid."""
        missed = [abs(p.off.value) for p in self.predictions if isinstance(p.off, Measured)]
        if not missed or isinstance(self.left_out, NotMeasured):
            return "the next width was not measured"
        said = f"at {self.predictions[0].n_latents:,} latents the law misses by at most {max(missed):.1%}"
        return f"{said}; runs left out of the grid by at most {self.left_out.value:.1%}"

    def __str__(self) -> str:
        lines = [
            f"{self.rule} at {self.site} of {self.network}: {self.kind}, {self.places:,} places each, {self.seeds} "
            f"seed{'s' if self.seeds != 1 else ''}",
            f"judged on {self.sequences} sequences of {self.data}; intervals are 95%, over {self.units} documents",
            "",
            table(
                ["latents", "k", "lr", "L0", "FVU", "law without it"],
                [
                    [f"{c.n_latents:,}", f"{c.k}", f"{c.lr:.2g}", figure(c.l0, 1), figure(c.fvu, 4), _share(c.left_out)]
                    for c in self.grid
                ],
            ),
            "",
            f"FVU = exp(a) (L0 / {self.middle[0]:.3g})^(b_k + g ln(n / {self.middle[1]:.4g})) "
            f"(n / {self.middle[1]:.4g})^b_n",
            *(f"  {key:<4}{figure(self.law[key], 4)}  {NAMES[key]}" for key in NAMES),
            "",
            "best learning rate",
            *(f"  {f'{r.n_latents:,} latents':<30}{_rate(r.best)}" for r in self.rates),
            f"  exponent of n                 {figure(self.rate_slope)}",
            f"  predicted for the next width  {_rate(self.next_rate)}",
            f"  measured there                {_rate(self.next_rate_measured)}",
            "",
            table(
                ["next", "k", "lr", "predicted FVU", "measured FVU", "off"],
                [
                    [f"{p.n_latents:,}", f"{p.k}", f"{p.lr:.2g}", figure(p.predicted, 4), figure(p.measured, 4),
                     _share(p.off)]
                    for p in self.predictions
                ],
            ),
            self.verdict,
            *self.notes,
        ]  # fmt: skip
        return "\n".join(lines)


def _share(metric: Metric) -> str:
    if isinstance(metric, NotMeasured):
        return "not measured"
    return f"{metric.value:+.1%} [{metric.low:+.1%}, {metric.high:+.1%}]"


def _rate(metric: Metric) -> str:
    if isinstance(metric, NotMeasured):
        return f"not measured: {metric.not_measured}"
    return f"{metric.value:.2e} [{metric.low:.2e}, {metric.high:.2e}]"
