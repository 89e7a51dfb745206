"""BatchTopK: keep the k x places largest pre-activations of a whole batch, so that places differ in their share
(Bussmann et al. 2024, arXiv:2412.06410). For running it is converted to thresholds, as batches must not interact."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Sparsity
from understudy.core.latents import Latents, Pre
from understudy.core.records.errors import BadInput
from understudy.sparsity.threshold import Threshold


class BatchTopK(Sparsity):
    is_thresholded: ClassVar[bool] = False

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise BadInput(f"k={k}: a dictionary that keeps no latents cannot write anything; k must be at least 1.")
        self.k = k

    def forward(self, pre: Pre) -> Latents:
        return pre.above(self._cut(pre))

    def _cut(self, pre: Pre) -> float:
        """The value that k x places positive pre-activations of this batch exceed."""
        positive = torch.cat([block[block > 0] for _, block in pre.chunks()])
        n_places = 1
        for n in pre.shape:
            n_places *= n
        wanted = self.k * n_places
        if wanted >= len(positive):
            return 0.0
        return float(positive.sort(descending=True).values[wanted - 1 : wanted + 1].mean())

    def settings(self) -> dict[str, Any]:
        return {"name": "batch_topk", "k": self.k}

    def scaled(self, factor: Tensor) -> "BatchTopK":
        return self

    def as_threshold(self, theta: Float[Tensor, " L"]) -> Threshold:
        return Threshold(theta)
