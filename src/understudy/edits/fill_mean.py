"""Dropped latents at their mean: what they write on average over training data becomes part of the bias."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.site import Site
from understudy.edits.restriction import Kept, check_places, kept_ids, restricted

ROWS = 4096
"""Places encoded at once."""


@torch.no_grad()
def fill_mean(groups: Sequence[Group], kept: Kept, sample: Acts) -> list[Group]:
    """New groups: the kept latents, and at each written site the mean over `sample` of what all others write.

    groups: the whole ones. sample: rows [n, d] of training data at the sites they read.
    """
    check_places(groups, "a mean")
    parts = restricted(groups, kept)
    return [_filled(whole, part, sample) for whole, part in zip(groups, parts, strict=True)]


def _filled(whole: Group, part: Group, sample: Acts) -> Group:
    biases: dict[Site, Tensor] = dict(part.biases)
    for member, kept in zip(whole.members, part.members, strict=True):
        values = mean_latents(member, sample)
        values[kept_ids(kept)] = 0
        ids = values.nonzero().squeeze(-1)
        for site, atoms in member.atoms(ids).items():
            mean = values[ids].to(atoms) @ atoms
            biases[site] = biases[site] + mean if site in biases else mean
    return Group(part.members, biases)


def mean_latents(member, sample: Acts) -> Tensor:
    """The mean of each latent over places, absent counted as 0, in fp64: [n_latents]."""
    total = torch.zeros(member.n_latents, dtype=torch.float64, device=sample[member.reads[0]].device)
    n = len(sample[member.reads[0]])
    for i in range(0, n, ROWS):
        z = member.encode({s: sample[s][i : i + ROWS] for s in member.reads}).z
        total.index_add_(0, z.ids, z.values.double())
    return total / n
