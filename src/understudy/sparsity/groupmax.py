"""GroupMax: latents lie in k groups of equal size and the largest of each group is kept, then ReLU. Sorts nothing, and
no group can crowd out another (EleutherAI sparsify, `groupmax`; latents in order, groups contiguous as there)."""

from typing import ClassVar, Self

import torch

from understudy.core.latents import Latents, Pattern, Pre
from understudy.core.records.errors import BadInput
from understudy.core.sparsity import check_k
from understudy.sparsity.topk import TopK


class GroupMax(TopK):
    name: ClassVar[str] = "groupmax"

    @classmethod
    def start(cls, n_latents: int, k: int) -> Self:
        check_groups(check_k(k, n_latents), n_latents)
        return cls(k)

    def forward(self, pre: Pre) -> Latents:
        size = check_groups(self.k, pre.n_latents)
        first = torch.arange(self.k) * size
        blocks = [block.unflatten(1, (self.k, size)).argmax(-1) for _, block in pre.chunks()]
        ids = torch.cat([found + first.to(found.device) for found in blocks]).reshape(-1)
        offsets = torch.arange(len(ids) // self.k + 1, device=ids.device) * self.k
        z = Latents(torch.empty(len(ids), device=ids.device), Pattern(ids, offsets, pre.n_latents), pre.shape)
        return z.with_values(pre.at(z).relu())


def check_groups(k: int, n_latents: int) -> int:
    """Size of a group. Raises BadInput if k groups of one size do not make up all latents."""
    if n_latents % k:
        raise BadInput(f"groupmax with k={k}: {n_latents} latents do not fall into {k} groups of one size.")
    return n_latents // k
