"""Only some latents of groups: the part of a graph that is run. Cost grows with what is kept."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, Group
from understudy.core.latents import Encoded, Latents
from understudy.core.records.errors import UnderstudyError, WrongShape
from understudy.core.site import Site

Kept = Mapping[Dictionary, Int[Tensor, " m"]]
"""For each dictionary the latents that stay."""
Dropped = Literal["zero", "mean", "refit", "low_rank"]
"""What becomes of the rest: nothing, their mean, the kept latents' best decoder, an affine model of the error."""


def restricted(groups: Sequence[Group], kept: Kept) -> list[Group]:
    """The same groups with only the kept latents; a dictionary that `kept` leaves out keeps none.

    Biases, skip paths and normalisation stay, so nothing kept is the network with its replaced modules constant.
    Raises UnderstudyError for rules under which latents compete: there a part means something else than in the whole.
    """
    return [Group([_part(m, kept.get(m)) for m in g.members], g.biases) for g in groups]


def _part(member: Dictionary, ids: Tensor | None) -> Dictionary:
    device = next((t.device for t in (*member.parameters(), *member.buffers())), None)
    return member.restrict(torch.zeros(0, dtype=torch.long, device=device) if ids is None else ids.long().to(device))


def kept_ids(member: Dictionary) -> Int[Tensor, " m"]:
    """The latents a dictionary computes, sorted, by their numbers in the whole."""
    return getattr(member, "ids", torch.arange(member.n_latents))


class AtPlaces(Dictionary):
    """A dictionary whose latents are let through only at the places where a graph has them as nodes."""

    kind = "at_places"
    scope = "sequence"

    def __init__(self, whole: Dictionary, allowed: Bool[Tensor, "n_places n_latents"]) -> None:
        """allowed: by flat place of one sequence; every sequence of a batch is treated alike."""
        super().__init__()
        self.whole, self.allowed, self.ids = whole, allowed, kept_ids(whole)
        self.reads, self.writes, self.n_latents = whole.reads, whole.writes, whole.n_latents

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        z, pre = self.whole.encode(acts, ctx)
        n_places = len(self.allowed)
        over_time = len(z.shape) == 1
        if (not over_time and prod(z.shape[1:]) != n_places) or ctx.call >= n_places:
            raise WrongShape(
                f"the graph is of an input with {n_places} places; this one has {tuple(z.shape[1:])}. Run it on its "
                'own input, or run its features at every place: at="features".'
            )
        place = ctx.call if over_time else z.rows % n_places
        return Encoded(z.keep(self.allowed[place, z.ids], by="occurrence"), pre)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.whole.decode(z)

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return self.whole.atoms(ids)

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.whole.rest(acts)

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT):
        return self.whole.linearise(acts, z, ctx)


def check_places(groups: Sequence[Group], what: str) -> None:
    """Raises UnderstudyError for dictionaries that cannot be fitted on loose rows."""
    for member in (m for g in groups for m in g.members):
        if member.scope != "place":
            raise UnderstudyError(f"{what} is fitted on single places, but {member} mixes them.")
