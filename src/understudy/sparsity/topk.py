"""TopK: keep the k largest pre-activations, then ReLU (Gao et al. 2024, arXiv:2406.04093, section 2.3)."""

from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from understudy.core.latents import Latents, Pre
from understudy.core.sparsity import Sparsity, check_k
from understudy.sparsity.threshold import Threshold


class TopK(Sparsity):
    name: ClassVar[str] = "topk"
    is_thresholded: ClassVar[bool] = False

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = check_k(k)

    @classmethod
    def start(cls, n_latents: int, k: int) -> Self:
        return cls(check_k(k, n_latents))

    def forward(self, pre: Pre) -> Latents:
        z = pre.top(check_k(self.k, pre.n_latents))
        return z.with_values(z.values.relu())

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k}

    def as_threshold(self, theta: Float[Tensor, " L"]) -> Threshold:
        return Threshold(theta)
