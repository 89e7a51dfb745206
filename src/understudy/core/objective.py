"""Objective: the loss of a group, a value of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.latents import Encoded
from understudy.core.site import Site


@dataclass
class TrainingState:
    """What an objective may know about the run so far. Counts are in places, never steps."""

    variance: dict[Site, float]
    """Total variance (sum over dimensions, raw units squared) of each written site, measured once on a fixed sample."""
    dead: list[Bool[Tensor, " L"]] = field(default_factory=list)
    """For each member, the latents that have been silent for the revival window."""
    places: int = 0
    """Places trained on so far."""


class Loss(NamedTuple):
    total: Float[Tensor, ""]
    """What is minimised."""
    terms: dict[str, Float[Tensor, ""]]
    """Its parts, by name, for the curves."""


class Objective(Protocol):
    @property
    def needs(self) -> Literal["rows", "sequences"]:
        """`rows`: shuffled places; `sequences`: whole inputs, run through the network."""
        ...

    def __call__(
        self,
        group: Group,
        acts: Acts,
        encoded: list[Encoded],
        run: Callable[..., Any] | None,
        state: TrainingState,
    ) -> Loss: ...
