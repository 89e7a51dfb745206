"""Claim: a sentence about dictionaries that either carries over to another network or does not. One file each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.dictionary import Group
from understudy.core.latents import Latents
from understudy.core.records.metric import NotMeasured
from understudy.metrics import Bootstrap
from understudy.workflows._grid.draws import Draws
from understudy.workflows._grid.together import Bench

Tally = Mapping[str, np.ndarray]
"""Sums of one dictionary, by name: arrays [n_sequences, ...], or of another first axis where the claim says so."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    """As the table and the folders say it."""
    sparsity: str
    options: tuple[tuple[str, Any], ...] = ()
    """Further fields of a training configuration, such as its objective."""


class Seen(NamedTuple):
    """Some held-out places under one dictionary."""

    x: Float[Tensor, "rows d"]
    hat: Float[Tensor, "rows d"]
    z: Latents
    sequences: Int[Tensor, " rows"]
    """Index of each place's sequence."""
    number: int
    """Which batch of places this is: the same for every dictionary."""


class Counter(ABC):
    """Sums of one dictionary over held-out places."""

    @abstractmethod
    def update(self, seen: Seen) -> None: ...

    @abstractmethod
    def sums(self) -> Tally: ...


class Claim(ABC):
    """Derive from it, fill in the fields, and give its path to `--claims` (`my_lab.claims.Mine`), or add it here."""

    name: ClassVar[str]
    sentence: ClassVar[str]
    """`A removes the X that B has.`"""
    defect: ClassVar[str]
    definition: ClassVar[str]
    unit: ClassVar[str]
    source: ClassVar[str]
    control: ClassVar[str]
    """Where the same figure must give 0, and why."""
    least: ClassVar[float]
    """Smallest defect that there is any point in removing."""
    arms: ClassVar[tuple[Arm, ...]]
    """The one that has the defect, the one that is said to remove it, others beside them."""
    least_width: ClassVar[int] = 1
    """Width of the narrowest site it can be tried at."""
    passes: ClassVar[int] = 1
    """How often held-out places are gone over: more than once where `given` adds something random to them."""

    def bench(self, bench: Bench, seed: int) -> Bench:
        """What dictionaries of a seed are trained on: the network's activations as they are, or with something in
        them."""
        return bench

    def given(self, bench: Bench, rows: Float[Tensor, "rows d"], number: int) -> Float[Tensor, "rows d"]:
        """The same for held-out places."""
        return rows

    @abstractmethod
    def counter(self, bench: Bench, group: Group, n_sequences: int) -> Counter:
        """Begin to count; `bench` as `bench(...)` gave it."""

    @abstractmethod
    def defects(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws] | NotMeasured:
        """The figure of each dictionary of one seed, in each draw; 0 is none. These are the runs, one or more, that the
        arms are read off from. They come together, so that the claim may count only what all of them have; NotMeasured
        where that is too little."""

    @abstractmethod
    def controls(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws] | NotMeasured:
        """The same where there is nothing to find."""

    def notes(self, by_seed: Sequence[Mapping[str, Sequence[Tally]]]) -> list[str]:
        """What a reader of a row should know. by_seed: for each seed, the runs of each arm that it is read off from."""
        return []
