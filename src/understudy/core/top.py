"""The k largest pre-activations of each place, and those above a threshold.

R rows, L latents. Blocks of latents are looked at first: a row's k largest lie in the k blocks with the largest maxima,
so that only those are ranked. `core/candidates.py` has a faster product for the same.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.pattern import CHUNK_BYTES, kernels_for


class Ragged(NamedTuple):
    """Ids and values, row after row, those of a row in any order, and how many each row has."""

    ids: Int[Tensor, " Z"]
    values: Float[Tensor, " Z"]
    counts: Int[Tensor, " R"]


Found = tuple[Int[Tensor, " Z"], Float[Tensor, " Z"]]
"""Ids and values, k for each row."""


def step_rows(n: int, itemsize: int) -> int:
    """Rows of a chunk: few enough for its products to be ranked from the cache, enough to multiply at full speed."""
    row = max(1, n) * itemsize
    return max(1, min(CHUNK_BYTES // row, max(512, (1 << 24) // row)))


@torch.no_grad()
def largest(x: Float[Tensor, "R d"], W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int) -> Found:
    """The k largest of `x W^T + b` in each row, not in order. One chunk of the product is held at a time."""
    step = min(max(1, len(x)), step_rows(len(W), x.element_size()))
    held = x.new_empty(step, len(W))
    found = []
    for rows in x.split(step):
        block = held[: len(rows)]
        torch.addmm(b, rows, W.T, out=block)
        found.append(top(block, k))
    ids, values = (torch.cat(parts).reshape(-1) for parts in zip(*found, strict=True))
    return ids, values


def top(block: Float[Tensor, "r L"], k: int) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """Ids and values of the k largest of each row, not in order: those of the k blocks whose maxima are the largest."""
    n = block.shape[1]
    size = block_size(n, k)
    if size == 1:
        return ranked(block, k)
    n_blocks = n // size
    maxima = block[:, : size * n_blocks].unflatten(1, (size, n_blocks)).amax(1)
    first, _ = ranked(maxima, k)
    inside = first[:, None, :] + torch.arange(0, size * n_blocks, n_blocks, device=block.device)[:, None]
    rest = torch.arange(size * n_blocks, n, device=block.device).expand(len(block), -1)
    columns = torch.cat([inside.flatten(1), rest], 1)
    at = torch.arange(0, block.numel(), n, device=block.device)[:, None]
    picked, values = ranked(block.view(-1).take(columns + at), k)
    return columns.gather(1, picked), values


def above(blocks: Iterable[tuple[slice, Float[Tensor, "r L"]]], theta: Float[Tensor, " L"] | float) -> Ragged:
    """All that is above theta, in blocks of rows that follow one another."""
    parts = []
    for _, block in blocks:
        row, latent = (block > theta).nonzero(as_tuple=True)
        parts.append(Ragged(latent, block[row, latent], torch.bincount(row, minlength=len(block))))
    return joined(parts)


def joined(parts: Sequence[Ragged]) -> Ragged:
    """Rows after rows, of at least one part."""
    return Ragged(*(torch.cat(each) for each in zip(*parts, strict=True)))


def ranked(x: Float[Tensor, "r n"], k: int) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """Ids and values of the k largest of each row, not in order."""
    if (kernels := kernels_for(x)) is not None and x.shape[1] <= kernels.MOST_RANKED:
        return kernels.top(x, k)
    values, ids = x.topk(k, dim=1, sorted=False)
    return ids, values


def block_size(n: int, k: int) -> int:
    """What leaves the fewest numbers to rank: n / size maxima, then k size entries. 1: blocks would not help."""
    return min((1, 4, 8, 16, 32, 64), key=lambda s: n if s == 1 else n if n < 2 * k * s else n // s + (k + 1) * s)
