"""Gated: a latent is on where its gate is open, and how large it is is learned apart from that, so that the penalty on
being on does not shrink it (Rajamanoharan et al. 2024, arXiv:2404.16014; weights tied as in their section 3.2).

The gate's pre-activation is p = W_enc x + b_enc. Where p > 0 the latent is (exp(r_mag) p + b_mag)+. The penalty is
l1 x sum of (p)+, and (p)+ must rebuild the activations alone through a decoder held fixed (their eq. 8). Differs:
b_mag is counted from the gate's own zero, theirs from W_enc x: the same functions, another step size. The penalty
counts each latent by the length of what it writes, which is 1 in an SAE as in theirs; the input's b_dec is not held
fixed."""

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.sparsity import Also, Norms, Plain, Sparsity, check_coefficient, per_place, ramp
from understudy.sparsity._l1 import usual_l1
from understudy.sparsity.threshold import Threshold


class Gated(Sparsity):
    name: ClassVar[str] = "gated"
    is_thresholded: ClassVar[bool] = True
    per_latent: ClassVar[tuple[str, ...]] = ("r_mag", "b_mag")
    r_mag: nn.Parameter
    b_mag: nn.Parameter

    def __init__(
        self, r_mag: Float[Tensor, " L"], b_mag: Float[Tensor, " L"], l1: float = 0.0, warmup: float = 0.05
    ) -> None:
        """warmup: share of the run over which l1 rises from 0."""
        super().__init__()
        self.r_mag, self.b_mag = nn.Parameter(r_mag.detach().clone()), nn.Parameter(b_mag.detach().clone())
        self.l1, self.warmup = check_coefficient("l1", l1), check_coefficient("warmup", warmup)

    @classmethod
    def start(cls, n_latents: int, d_out: int, l1: float | None = None) -> Self:
        """Gate and magnitude begin as one and the same."""
        zero = torch.zeros(n_latents)
        return cls(zero, zero, usual_l1(d_out) if l1 is None else l1)

    def forward(self, pre: Pre) -> Latents:
        z = pre.above(0.0)
        return z.with_values((self.r_mag.exp()[z.ids] * z.values + self.b_mag[z.ids]).relu())

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        z = encoded.z
        opened = encoded.pre.at(z) * norms().detach()[z.ids]
        return {"sparsity": self.l1 * ramp(done, self.warmup) * per_place(opened, z)}

    def also(self, encoded: Encoded) -> list[Also]:
        z = encoded.z
        return [Also("gate", z.with_values(encoded.pre.at(z)), 1.0, fixed_decoder=True)]

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "l1": self.l1, "warmup": self.warmup}

    def plain(self) -> Plain:
        """A gate at p > 0 is a threshold at b_mag on the magnitude, and magnitudes are positive."""
        return Plain(Threshold(self.b_mag.clamp(min=0)), self.r_mag.exp().detach(), self.b_mag.detach())

    def scaled(self, factor: Tensor) -> "Gated":
        return Gated(self.r_mag, self.b_mag * factor, self.l1, self.warmup)

    def restrict(self, ids: Int[Tensor, " m"]) -> "Gated":
        return Gated(self.r_mag[ids], self.b_mag[ids], self.l1, self.warmup)
