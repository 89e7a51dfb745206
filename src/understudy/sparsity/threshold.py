"""Threshold: a latent is on where its pre-activation exceeds its own threshold.

What every TopK and BatchTopK run is converted to, and JumpReLU at inference (Rajamanoharan et al. 2024,
arXiv:2407.14435, eq. 3; raw thresholds, not their logarithms)."""

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.latents import Latents, Pre
from understudy.core.sparsity import Sparsity


class Threshold(Sparsity):
    name: ClassVar[str] = "threshold"
    is_thresholded: ClassVar[bool] = True
    per_latent: ClassVar[tuple[str, ...]] = ("theta",)
    theta: Tensor

    def __init__(self, theta: Float[Tensor, " L"]) -> None:
        """theta: in units of the pre-activations, at least 0."""
        super().__init__()
        self.register_buffer("theta", theta.detach().clone())

    def forward(self, pre: Pre) -> Latents:
        return pre.above(self.theta)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def scaled(self, factor: Tensor) -> "Threshold":
        return Threshold(self.theta * factor)

    def restrict(self, ids: Int[Tensor, " m"]) -> "Threshold":
        return Threshold(self.theta[ids])
