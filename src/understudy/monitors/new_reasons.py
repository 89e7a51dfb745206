"""New reasons: a latent fires as it always did, but because of what never made it fire before.

Fitted on the shares of what drove one latent over trusted inputs (`attribution.reasons`). An input's score is

    sum over sources of the share beyond the reference's upper quantile
    + sum over pairs of r_i r_j max(0, log (expected + 1) / (joint + 1))

where joint = sum over the reference of r_i r_j and expected = (sum r_i)(sum r_j) / n: how much influence two sources
would have together if they were independent, against how much they had. Conditioning on the latent that fires is what
leaves novel but irrelevant pairs out. Ours; the idea of asking for the mechanism and not the activation is that of
mechanistic anomaly detection (Christiano 2022, "Mechanistic anomaly detection and ELK").
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.records.errors import BadData

QUANTILE = 0.999


@dataclass(frozen=True)
class NewReasons:
    """What is usual for one latent."""

    upper: Float[Tensor, " s"]
    """The `QUANTILE` of each source's share over the reference."""
    surprise: Float[Tensor, "s s"]
    """max(0, log (expected + 1) / (joint + 1)) of each pair; 0 on the diagonal."""
    n: int
    """Rows of the reference."""

    @classmethod
    def fit(cls, shares: Float[Tensor, "n s"]) -> Self:
        """shares: one row for each trusted place where the latent fires. Raises BadData for fewer than 20."""
        if len(shares) < 20:
            raise BadData(f"the latent fires at {len(shares)} trusted places; what is usual needs at least 20.")
        r = shares.double()
        total = r.sum(0)
        expected, joint = torch.outer(total, total) / len(r), r.T @ r
        surprise = ((expected + 1) / (joint + 1)).log().clamp(min=0)
        surprise.fill_diagonal_(0)
        return cls(r.quantile(QUANTILE, dim=0), surprise, len(r))

    def score(self, shares: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
        """Higher is stranger; 0 is within all that was seen."""
        r = shares.double()
        return (r - self.upper).clamp(min=0).sum(1) + ((r @ self.surprise) * r).sum(1) / 2
