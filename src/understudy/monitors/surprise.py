"""Surprise pair: the most surprising pair of sources that are on together, edges unknown. The strong baseline."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SurprisePair:
    """log (expected + 1) / (seen + 1) of each pair, from how often sources are on in the reference."""

    surprise: Float[Tensor, "s s"]

    @classmethod
    def fit(cls, latents: Float[Tensor, "n s"]) -> Self:
        on = (latents > 0).double()
        total = on.sum(0)
        surprise = ((torch.outer(total, total) / max(1, len(on)) + 1) / (on.T @ on + 1)).log().clamp(min=0)
        surprise.fill_diagonal_(0)
        return cls(surprise)

    def score(self, latents: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
        """The largest surprise of a pair that is on."""
        out = torch.zeros(len(latents), dtype=torch.float64)
        for i, row in enumerate(latents > 0):
            ids = row.nonzero().squeeze(-1)
            if len(ids) > 1:
                out[i] = self.surprise[ids][:, ids].max()
        return out
