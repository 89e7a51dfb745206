"""A figure: measured with an interval, or not measured with the reason. Never 0 or null in disguise."""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a measured figure must be finite, got {value}; use NotMeasured(reason)")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


class Record(BaseModel):
    """Plain immutable data that round-trips through JSON; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(Record):
    """A value with its 95% interval, unit and sample size."""

    value: Finite
    low: Finite
    """Lower end of the 95% interval; equals `value` where the figure is exact (a count)."""
    high: Finite
    unit: str
    """`nats`, `fraction`, `latents`, `tokens`, `order`, `FLOPs`, ..."""
    n: int
    """How many independent units (sequences, unless the unit says otherwise) the interval rests on."""

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g} {self.unit}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] {self.unit}"


class NotMeasured(Record):
    """Why there is no figure."""

    not_measured: str

    def __str__(self) -> str:
        return f"not measured: {self.not_measured}"


Metric = Measured | NotMeasured


def exact(value: float, unit: str, n: int) -> Measured:
    """A figure without sampling error, such as a count or a share of parameters."""
    return Measured(value=value, low=value, high=value, unit=unit, n=n)
