"""Objective: the loss of a group, a value of its own."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Acts, Group
from understudy.core.latents import Encoded
from understudy.core.network import Network
from understudy.core.replacement import Replacement
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
    done: float = 1.0
    """Share of the run that is done: what coefficients rise over."""


@dataclass(frozen=True)
class OnSequences:
    """The whole inputs of a step and the network that runs them, shared by every group of the step.

    Row i of the activations an objective gets is the i-th place of `batch` that its mask lets through.
    """

    network: Network
    batch: Batch

    @cached_property
    def clean(self) -> Any:
        """The network's own output."""
        self.network.prepare(self.batch)
        with torch.no_grad():
            return self.network.forward(self.batch)

    def replaced(self, group: Group) -> Any:
        """The output with the group alone in the network's place, with gradients for the group."""
        return Replacement(self.network, [group]).run(self.batch).output


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
        run: OnSequences | None,
        state: TrainingState,
    ) -> Loss:
        """acts: rows at the group's sites; encoded: what its members make of them; run: where `needs` is sequences."""
        ...
