"""Absorption: a child's latent speaks for the parent, so that the parent's own latent is silent where the child is on.

A parent is a property that a place has or has not; its children imply it, as "begins with s" is implied by "is
`short`". A sparse dictionary saves a latent where a child's latent writes the parent's direction too, and the parent's
latent is then no account of the parent any more. Source: Chanin et al. 2024, A is for Absorption, section 5, and
SAEBench's `absorption`. Ours differs: which places have children is known and not inferred, so that a parent that was
split into several latents is not taken for an absorbed one, and what is counted is compared with places where the
parent stands alone, so that a latent that misses at random counts nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape

MOST, GAIN = 3, 0.03
"""Latents that may share a parent, and by how much another one must raise their F1."""
CARRIED = 0.5
"""Share of the parent's direction that other latents must write for the parent to be carried by them."""

COUNTS = ("child", "absorbed", "silent", "alone", "carried_alone", "silent_alone")
"""Places with a child; of these, where the parent's latents are silent and others carry it, and where they are silent;
the same where the parent is alone."""


class Own(NamedTuple):
    """A parent's own latents: those that tell places where it stands alone from places without it."""

    ids: Int[Tensor, " m"]
    f1: float
    """Of "one of them is on" for "the parent is there", as if it always stood alone."""


def own_latents(z: Latents, parent: Bool[Tensor, " rows"], child: Bool[Tensor, " rows"]) -> Own:
    """Greedily by F1 over places where the parent is alone, against places without it; others are not looked at.

    False alarms weigh as if the parent were alone wherever it is, so that many children do not make F1 small. Raises
    WrongShape without a place of either kind, or if there is another number of rows.
    """
    alone, off = parent & ~child, ~parent
    if not (len(alone) == len(z.offsets) - 1 and bool(alone.any()) and bool(off.any())):
        raise WrongShape(
            f"{len(alone)} rows for {len(z.offsets) - 1} rows of latents, {int(alone.sum())} of them with the parent "
            f"alone and {int(off.sum())} without it: a parent's latents are found where it stands alone, against "
            "places without it."
        )
    n_alone = int(alone.sum())
    weight = n_alone / int(parent.sum())
    rows, on, chosen, best = z.rows, z.values != 0, [], 0.0
    covered = torch.zeros_like(alone)
    for _ in range(MOST):
        fresh = on & ~covered[rows]
        hits = int((covered & alone).sum()) + _count(z, fresh & alone[rows])
        false = int((covered & off).sum()) + _count(z, fresh & off[rows])
        f1 = 2 * hits / (hits + weight * false + n_alone)
        which = int(f1.argmax())
        if float(f1[which]) < best + (GAIN if chosen else 0.0):
            break
        best = float(f1[which])
        chosen.append(which)
        covered[rows[on & (z.ids == which)]] = True
    return Own(torch.tensor(chosen, dtype=torch.long, device=z.ids.device), best)


def _count(z: Latents, where: Bool[Tensor, " Z"]) -> Int[Tensor, " L"]:
    return torch.bincount(z.ids[where], minlength=z.n_latents)


class Absorption:
    """Counts of one parent under one dictionary, one row per sequence. Order and size of batches change nothing."""

    def __init__(
        self, n_sequences: int, own: Own, along: Float[Tensor, " L"], amount: float, baseline: float = 0.0
    ) -> None:
        """along: each latent's atom . the parent's unit direction. amount: how much of that direction the parent adds.
        baseline: what latents that are not the parent's write along it at places without the parent (`carried`)."""
        self.own, self.along, self.amount, self.baseline = own, along.clone(), amount, baseline
        self.along[own.ids] = 0.0
        self.sums: dict[str, np.ndarray] = {name: np.zeros(n_sequences) for name in COUNTS}

    def carried(self, z: Latents) -> Float[Tensor, " rows"]:
        """What latents that are not the parent's write along its direction, at each row."""
        out = z.values.new_zeros(len(z.offsets) - 1)
        return out.index_add_(0, z.rows, z.values * self.along[z.ids])

    def update(
        self,
        z: Latents,
        child: Bool[Tensor, " rows"],
        alone: Bool[Tensor, " rows"],
        sequences: Int[Tensor, " rows"],
    ) -> None:
        """child: the parent is there, and a child; alone: the parent and no child. sequences: index of each row."""
        heard = torch.zeros_like(child)
        heard[z.rows[torch.isin(z.ids, self.own.ids) & (z.values != 0)]] = True
        spoken = ~heard & (self.carried(z) - self.baseline >= CARRIED * self.amount)
        counted = {
            "child": child, "absorbed": child & spoken, "silent": child & ~heard,
            "alone": alone, "carried_alone": alone & spoken, "silent_alone": alone & ~heard,
        }  # fmt: skip
        for name, places in counted.items():
            np.add.at(self.sums[name], sequences[places].cpu().numpy(), 1.0)


def absorption(sums: Mapping[str, Float[np.ndarray, "draws ..."]]) -> Float[np.ndarray, "draws ..."]:
    """P(the parent's latents are silent and others carry it | a child is on) - the same where the parent is alone.

    A difference of two shares of places: 1, every child speaks for the parent; 0, none does, or the latents miss it
    as often without a child.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums["absorbed"] / sums["child"] - sums["carried_alone"] / sums["alone"]
