"""Known features inside a network's own activations: families of a parent and its children, added at random places.

The activations stay the network's; what is added is known exactly, at every place. In a nested family a child is on
only where its parent is; in a loose one each is on as often, whatever the parent does: nothing can be absorbed there,
and what is found in loose families is a false alarm.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.site import Site
from understudy.workflows._grid.together import FIT_CHUNK, Bench
from understudy.workflows._training.harvest import Harvest

NESTED, LOOSE, CHILDREN = 5, 3, 3
"""Families of either kind, and children of each."""
PARENT, CHILD = 0.1, 0.75
"""How often a parent is on, and how often a nested one has a child with it, which is any of them: so the parent alone
and each child with it are as frequent, and the parent four times more."""
LENGTH = 0.5
"""What a feature adds, over the root mean square length of the network's own activations around their mean."""
SPREAD = 0.25
"""Standard deviation of that amount, over it."""
FIT_ROWS = 1 << 15
"""Rows on which a parent's own latents are found."""
_SALT = 24301


class Drawn(NamedTuple):
    """What was planted at some rows."""

    added: Float[Tensor, "rows d"]
    parents: Bool[Tensor, "rows families"]
    children: Bool[Tensor, "rows families"]
    """Whether some child of the family is on."""


@dataclass(frozen=True)
class Planting:
    """Directions and amounts of one seed; nested families come first."""

    width: int
    """1 + CHILDREN or more: at other than right angles a child writes its parent's direction by itself, and would be
    taken for one that absorbs."""
    length: float
    """In the network's units."""
    seed: int

    @cached_property
    def directions(self) -> Float[Tensor, "families features d"]:
        """Unit vectors, at right angles within a family, at random otherwise; the first of a family is its parent's."""
        drawn = torch.randn(NESTED + LOOSE, 1 + CHILDREN, self.width, generator=self._generator(-1))
        unit, upper = torch.linalg.qr(drawn.mT)  # signs as of Gram-Schmidt, so that no direction is preferred
        return (unit * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT.contiguous()

    def draw(self, rows: int, number: int) -> Drawn:
        """The same for the same number of rows and `number`, which tells batches apart."""
        generator, n = self._generator(number), NESTED + LOOSE
        parents = torch.rand(rows, n, generator=generator) < PARENT
        which = (torch.rand(rows, n, 1, generator=generator) / CHILD * CHILDREN).floor()  # none from CHILDREN on
        born = parents[..., None] & (which == torch.arange(CHILDREN))
        free = torch.rand(rows, n, CHILDREN, generator=generator) < PARENT * CHILD / CHILDREN
        children = torch.where((torch.arange(n) < NESTED)[:, None], born, free)
        on = torch.cat([parents[..., None], children], -1)
        size = (1 + SPREAD * torch.randn(on.shape, generator=generator)).clamp(min=0.25)
        added = torch.einsum("rfi,fid->rd", on * size * self.length, self.directions)
        return Drawn(added, parents, children.any(-1))

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((_SALT + self.seed) * 10_000_000_019 + number + 1)


def rms(rows: Float[Tensor, "n d"]) -> float:
    """Root mean square distance of rows from their mean."""
    return float(rows.double().var(0, correction=0).sum().sqrt())


@dataclass
class PlantedHarvest(Harvest):
    """A harvest with features planted at its one site; by the number of the chunk, as its order is."""

    planting: Planting = field(kw_only=True)

    def chunk(self, number: int) -> dict[Site, Tensor]:
        rows = super().chunk(number)
        for value in rows.values():
            value += self.planting.draw(len(value), number).added.to(value)
        return rows


@dataclass(frozen=True)
class PlantedBench(Bench):
    """A bench on whose site features are planted."""

    planting: Planting = field(kw_only=True)

    def harvest(self, seed: int) -> Harvest:
        plain = super().harvest(seed)
        return PlantedHarvest(
            plain.network, plain.sequences, plain.sites, plain.seed, plain.chunk_sequences, planting=self.planting
        )

    @cached_property
    def fit(self) -> tuple[Float[Tensor, "rows d"], Drawn]:
        """Training rows that no step saw in this order, and what is in them; harvested once for all dictionaries."""
        (rows,) = self.harvest(self.planting.seed).chunk(FIT_CHUNK).values()
        drawn = self.planting.draw(len(rows), FIT_CHUNK)
        return rows[:FIT_ROWS].clone(), Drawn(*(x[:FIT_ROWS] for x in drawn))
