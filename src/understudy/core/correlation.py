"""Spearman's rank correlation, ties at their mean rank."""

import numpy as np
from jaxtyping import Float


def spearman(pairs: Float[np.ndarray, "n 2"]) -> float:
    """The correlation of the two columns' ranks; 0 where one of them is constant."""
    ranks = np.stack([_ranks(pairs[:, i]) for i in (0, 1)])
    ranks -= ranks.mean(1, keepdims=True)
    length = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / length) if length > 0 else 0.0


def _ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
