"""The published algorithm on dense matrices: the oracle. Powers of the matrix, flat sorts, loops over all entries.

Written from its description: M = |A| with rows that sum to 1; influence I = w (M + M^2 + ...); a threshold keeps the
largest scores until they hold a share of the sum; nodes, then edges of the renormalised rest by M_ij (I_i + w_i), then
what dangles goes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Kinds(NamedTuple):
    """Which nodes are latents, errors, and always kept; and where influence starts."""

    latent: Tensor
    error: Tensor
    always: Tensor
    start: Tensor


def shares(a: Tensor) -> Tensor:
    sums = a.abs().sum(1, keepdim=True)
    return a.abs() / sums.clamp(min=1e-10)


def influence(m: Tensor, start: Tensor) -> Tensor:
    power, total = start @ m, torch.zeros_like(start)
    for _ in range(len(m)):
        total, power = total + power, power @ m
    assert not power.any()
    return total


def by_inverse(m: Tensor, start: Tensor) -> Tensor:
    eye = torch.eye(len(m), dtype=m.dtype)
    return start @ (torch.linalg.inv(eye - m) - eye)


def threshold(scores: Tensor, share: float) -> Tensor:
    ordered = scores.flatten().sort(descending=True).values
    held = ordered.cumsum(0) / ordered.sum()
    at = int((held < share).sum())
    return ordered[min(at, int((ordered > 0).sum()) - 1)]


def prune(a: Tensor, kinds: Kinds, nodes: float, edges: float) -> tuple[Tensor, Tensor]:
    scores = influence(shares(a), kinds.start)
    keep = (scores >= threshold(scores, nodes)) | kinds.always
    rest = a * keep[:, None] * keep[None]
    m = shares(rest)
    through = m * (influence(m, kinds.start) + kinds.start)[:, None]
    kept_edges = through >= threshold(through, edges)
    while True:
        out, into = kept_edges.any(0), kept_edges.any(1)
        fine = keep & (out | kinds.always) & (into | ~kinds.latent)
        if bool((fine == keep).all()):
            return keep, kept_edges
        keep = fine
        kept_edges = kept_edges & keep[:, None] & keep[None]


def scores(a: Tensor, kinds: Kinds, inputs: Tensor) -> tuple[float, float]:
    m = shares(a)
    through = influence(m, kinds.start)
    token, error = through[inputs].sum(), through[kinds.error].sum()
    reached = through + kinds.start
    explained = (1 - m[:, kinds.error].sum(1)) * reached
    return float(token / (token + error)), float(explained.sum() / reached.sum())
