"""Multi-TopK: a TopK that is trained to rebuild at 4 k as well, so that one dictionary serves at any k (Gao et al.
2024, arXiv:2406.04093, appendix on progressive codes: L(k) + L(4k) / 8). Use at another k:
`dictionary.with_sparsity(TopK(other))`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.sparsity import Also, Sparsity, check_coefficient, check_k
from understudy.sparsity.threshold import Threshold


class MultiTopK(Sparsity):
    name: ClassVar[str] = "multi_topk"
    is_thresholded: ClassVar[bool] = False

    def __init__(self, k: int, more: Mapping[str, float] | None = None) -> None:
        """more: weight in the loss of each other k, which is clipped to the latents there are. Default {4k: 1/8}."""
        super().__init__()
        self.k = check_k(k)
        self.more = {str(check_k(int(other))): check_coefficient("weight", w) for other, w in (more or {}).items()}
        if more is None:
            self.more = {str(4 * k): 1 / 8}

    @classmethod
    def start(cls, n_latents: int, k: int) -> Self:
        return cls(check_k(k, n_latents))

    def forward(self, pre: Pre) -> Latents:
        return _top(pre, check_k(self.k, pre.n_latents))

    def also(self, encoded: Encoded) -> list[Also]:
        return [Also(f"k={k}", _top(encoded.pre, int(k)), w, fixed_decoder=False) for k, w in self.more.items()]

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k, "more": self.more}

    def as_threshold(self, theta: Float[Tensor, " L"]) -> Threshold:
        return Threshold(theta)


def _top(pre: Pre, k: int) -> Latents:
    z = pre.top(k)
    return z.with_values(z.values.relu())
