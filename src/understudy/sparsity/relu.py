"""ReLU, kept sparse by an L1 penalty that counts each latent by the length of what it writes, so that small latents
with long atoms are no way around it (Anthropic, April 2024 update; Bricken et al. 2023 for unit-norm atoms).

l1 holds where activations have a mean square norm of 1 and errors are divided by their total variance, as ours are;
theirs is 5 at a norm of sqrt(d) and unnormalised errors, which is 5 / sqrt(d) here, and the default, but never above
0.1 (`_l1.py`). It rises over the first 5% of the run, as theirs. Differs: an SAE's decoder keeps rows of length 1, so
there the weights are 1."""

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.sparsity import Norms, Plain, Sparsity, check_coefficient, per_place, ramp
from understudy.sparsity._l1 import usual_l1
from understudy.sparsity.threshold import Threshold


class ReLU(Sparsity):
    name: ClassVar[str] = "relu"
    is_thresholded: ClassVar[bool] = True

    def __init__(self, n_latents: int, l1: float = 0.0, warmup: float = 0.05) -> None:
        """warmup: share of the run over which l1 rises from 0."""
        super().__init__()
        self.n_latents = n_latents
        self.l1, self.warmup = check_coefficient("l1", l1), check_coefficient("warmup", warmup)

    @classmethod
    def start(cls, n_latents: int, d_out: int, l1: float | None = None) -> Self:
        return cls(n_latents, usual_l1(d_out) if l1 is None else l1)

    def forward(self, pre: Pre) -> Latents:
        return pre.above(0.0)

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        z = encoded.z
        return {"sparsity": self.l1 * ramp(done, self.warmup) * per_place(z.values * norms()[z.ids], z)}

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "n_latents": self.n_latents, "l1": self.l1, "warmup": self.warmup}

    def restrict(self, ids: Int[Tensor, " m"]) -> "ReLU":
        return ReLU(len(ids), self.l1, self.warmup)

    def plain(self) -> Plain:
        return Plain(Threshold(torch.zeros(self.n_latents)))
