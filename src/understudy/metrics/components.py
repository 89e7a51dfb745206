"""Recovery of known mechanisms by parameter components: is there one component for each, and does it open for it alone?

A mechanism is a column of a weight matrix: what one feature writes, or reads."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LIVE = 0.1
"""A gate above this is open: the papers' tolerance."""


class Recovery(NamedTuple):
    """How well one Linear was taken apart."""

    cosine: float
    """Mean over features of the cosine between a feature's column and its component's part of it."""
    length_ratio: float
    """Mean over features of that part's length over the column's."""
    live: int
    """Components whose gate opens above 0.1 for some feature alone."""
    mistakes: int
    """Entries of the gates [feature, component] that are not as in one component a feature: 0 where all is right."""


def recovery(
    own: Float[Tensor, "C n"], other: Float[Tensor, "C d"], truth: Float[Tensor, "n d"], gates: Float[Tensor, "n C"]
) -> Recovery:
    """own: each component's factor on the side of the features, other: on the other side; truth: each feature's column.
    gates[i]: how far each component is open where feature i is alone.

    Source: Bushnaq et al. 2025 (arXiv:2506.20790), mean max cosine similarity and mean length ratio, section 3.1, and
    the identity error of their code. Differs: a feature's component is the one whose part projects furthest on the
    column, not the nearest in angle, as a part of almost no length may have any angle; features claim components
    greedily, the most open gate first.
    """
    parts = own[:, :, None] * other[:, None, :]
    best = (parts * truth).sum(-1).argmax(0)
    part = parts[best, torch.arange(len(truth), device=truth.device)]
    cosine = torch.cosine_similarity(part, truth, dim=-1).mean()
    ratio = (part.norm(dim=-1) / truth.norm(dim=-1)).mean()
    return Recovery(float(cosine), float(ratio), int((gates > LIVE).any(0).sum()), mistakes(gates))


def mistakes(gates: Float[Tensor, "n C"]) -> int:
    """Own gates under 0.9, and open gates of others."""
    wrong, claimed = gates > LIVE, torch.zeros_like(gates, dtype=torch.bool)
    left = gates.clone()
    for _ in range(min(gates.shape)):
        i, c = divmod(int(left.argmax()), gates.shape[1])
        claimed[i, c] = True
        left[i], left[:, c] = -1.0, -1.0
    short = (gates < 1 - LIVE) & claimed
    unclaimed = gates.shape[0] - int(claimed.sum())
    return int((wrong & ~claimed).sum()) + int(short.sum()) + unclaimed
