"""Input novelty: how far the sources are from where they usually are, edges unknown. A baseline."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class InputNovelty:
    """Squared Mahalanobis distance of the source latents, with `ridge` times their mean variance on the diagonal."""

    mean: Float[Tensor, " s"]
    inverse: Float[Tensor, "s s"]

    @classmethod
    def fit(cls, latents: Float[Tensor, "n s"], ridge: float = 1e-2) -> Self:
        x = latents.double()
        mean = x.mean(0)
        cov = (x - mean).T @ (x - mean) / max(1, len(x) - 1)
        cov.diagonal().add_(ridge * cov.diagonal().mean() + 1e-12)
        return cls(mean, torch.linalg.inv(cov))

    def score(self, latents: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
        x = latents.double() - self.mean
        return ((x @ self.inverse) * x).sum(1)
