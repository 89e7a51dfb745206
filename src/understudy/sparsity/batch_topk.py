"""BatchTopK: keep the k x places largest pre-activations of a whole batch, so that places differ in their share
(Bussmann et al. 2024, arXiv:2412.06410).

In use batches must not interact. So a rule in eval mode keeps what exceeds the mean cut of the batches it was trained
on, and a finished dictionary has a threshold for each latent (`thresholded`). Differs: the mean is bias-corrected from
the first batch on, theirs comes after training."""

from math import prod
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.latents import Latents, Pre
from understudy.core.sparsity import Sparsity, check_k
from understudy.sparsity.threshold import Threshold

DECAY = 0.99
"""Of the moving average of cuts, in batches."""
LIKELY = 0.9
"""Of that average: what exceeds it is looked through first, and is nearly always enough."""
JUST_BELOW = 1 - 1e-5
"""Of a cut that was found with other sums than the values that are held against it."""


class BatchTopK(Sparsity):
    name: ClassVar[str] = "batch_topk"
    is_thresholded: ClassVar[bool] = False
    average: Tensor
    """(decayed sum of cuts, decayed number of batches), so that their quotient is unbiased."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = check_k(k)
        self.register_buffer("average", torch.zeros(2))
        self._latest: float | None = None

    @classmethod
    def start(cls, n_latents: int, k: int) -> Self:
        return cls(check_k(k, n_latents))

    @property
    def cut(self) -> float | None:
        """What a pre-activation must exceed in eval mode; None before any batch was trained on."""
        total, weight = self.average.tolist()
        return total / weight if weight else None

    def forward(self, pre: Pre) -> Latents:
        if not self.training and self.cut is not None:
            return pre.above(self.cut)
        cut, z = self._most(pre)
        if self.training and torch.is_grad_enabled():
            self._latest = cut
        return z.with_values(pre.at(z, z.values))

    def after_step(self) -> None:
        """The cut of the batch that was learned from joins the average: not that of one that was only looked at."""
        if self._latest is not None:
            self.average.mul_(DECAY).add_(self.average.new_tensor([self._latest, 1.0]), alpha=1 - DECAY)
            self._latest = None

    @torch.no_grad()
    def _most(self, pre: Pre) -> tuple[float, Latents]:
        """What the k x places largest pre-activations of this batch that are positive exceed, and those."""
        wanted = self.k * prod(pre.shape)
        if self.cut and wanted:
            found = _most_of(pre.above(LIKELY * self.cut), wanted)
            if found is not None:
                return found
        cut = self._cut(pre, wanted)
        above = pre.above(JUST_BELOW * cut)
        return _most_of(above, wanted) or (cut, above)

    def _cut(self, pre: Pre, wanted: int) -> float:
        """The cut alone, 0 where fewer are positive. Holds no more of them than are wanted, and one block."""
        floor, kept = 0.0, None
        for _, block in pre.chunks():
            new = block[block > floor]
            kept = new if kept is None else torch.cat([kept, new])
            if len(kept) > wanted + 1:
                kept = kept.topk(wanted + 1, sorted=False).values
                floor = float(kept.min())
        return 0.0 if kept is None or len(kept) <= wanted or not wanted else _between(kept, wanted)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k}

    def scaled(self, factor: Tensor) -> "BatchTopK":
        made = BatchTopK(self.k)
        made.average = self.average * self.average.new_tensor([float(factor), 1.0])
        return made

    def as_threshold(self, theta: Float[Tensor, " L"]) -> Threshold:
        return Threshold(theta)


def _most_of(z: Latents, wanted: int) -> tuple[float, Latents] | None:
    """What the `wanted` largest exceed, and those; None where there are no more than that."""
    if len(z.values) <= wanted or not wanted:
        return None
    cut = _between(z.values, wanted)
    return cut, z.keep(z.values > cut, by="occurrence")


def _between(values: Float[Tensor, " n"], wanted: int) -> float:
    """What the `wanted` largest of more values exceed: halfway to the next."""
    return float(values.topk(wanted + 1, sorted=False).values.topk(2, largest=False).values.mean())
