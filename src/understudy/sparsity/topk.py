"""TopK: keep the k largest pre-activations, then ReLU (Gao et al. 2024, arXiv:2406.04093, section 2.3)."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Sparsity
from understudy.core.latents import Latents, Pre
from understudy.core.records.errors import BadInput
from understudy.sparsity.threshold import Threshold


class TopK(Sparsity):
    is_thresholded: ClassVar[bool] = False

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise BadInput(f"k={k}: a dictionary that keeps no latents cannot write anything; k must be at least 1.")
        self.k = k

    def forward(self, pre: Pre) -> Latents:
        if self.k > pre.n_latents:
            raise BadInput(f"k={self.k} is more than the {pre.n_latents} latents there are.")
        z = pre.top(self.k)
        return z.with_values(z.values.relu())

    def settings(self) -> dict[str, Any]:
        return {"name": "topk", "k": self.k}

    def scaled(self, factor: Tensor) -> "TopK":
        return self

    def as_threshold(self, theta: Float[Tensor, " L"]) -> Threshold:
        return Threshold(theta)
