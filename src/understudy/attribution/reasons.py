"""Reasons: why a latent fired at each place, as shares of what drove it, by source feature.

A share is a positive edge over the sum of all positive edges of the row, so it does not depend on how strongly the
latent fired; edges of one source feature at several places are added first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.build import Limits, make_engine
from understudy.attribution.local import LocalPass
from understudy.attribution.sources import Sources
from understudy.core.dictionary import Dictionary
from understudy.core.records.errors import UnknownName

OTHERS = ("input", "bias", "error")
"""Columns after those of all latents."""


@dataclass(frozen=True)
class Reasons:
    """Rows: places where the latent is on."""

    places: Int[Tensor, " m"]
    shares: Float[Tensor, "m features_and_others"]
    """Latents of all dictionaries in the order of the groups' members, then `OTHERS`; each row sums to 1."""


def reasons(local: LocalPass, member: Dictionary, latent: int, batch: int = 128) -> Reasons:
    """Shares of what drove one latent, wherever it is on. Raises UnknownName for a dictionary that is not a node."""
    sources = Sources(local)
    members = [m for g in local.groups for m in g.members]
    if member not in members:
        raise UnknownName.among("dictionary of this pass", str(member), [str(m) for m in members])
    first = torch.tensor([0, *[m.n_latents for m in members]]).cumsum(0)
    column = _features(sources, members, first)
    made = make_engine(local, sources, Limits(batch=batch))
    places, found = [], []
    for event in sources.events:
        if event.member is not member:
            continue
        chosen = ((event.z.ids == latent) & (event.z.values != 0)).nonzero().squeeze(-1)
        if not len(chosen):
            continue
        edges = made.event(event, chosen)
        total = torch.zeros(len(chosen), int(first[-1]) + len(OTHERS)).index_add_(1, column, edges)
        positive = total.clamp(min=0)
        found.append(positive / positive.sum(1, keepdim=True).clamp(min=1e-30))
        places.append(event.z.rows[chosen] + event.call * len(event.z.offsets.diff()))
    if not found:
        return Reasons(torch.zeros(0, dtype=torch.long), torch.zeros(0, int(first[-1]) + len(OTHERS)))
    return Reasons(torch.cat(places), torch.cat(found))


def _features(sources: Sources, members: list[Dictionary], first: Tensor) -> Int[Tensor, " n"]:
    """For each column of a row the column of its feature."""
    out = torch.full((sources.n,), int(first[-1]) + OTHERS.index("input"))
    out[sources.constants : sources.constants + 1 + len(sources.bias_columns)] = int(first[-1]) + OTHERS.index("bias")
    for columns in sources.error_columns.values():
        out[columns] = int(first[-1]) + OTHERS.index("error")
    for event in sources.events:
        out[event.columns] = first[members.index(event.member)] + event.z.ids
    return out
