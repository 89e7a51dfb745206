"""Rows to train on, the same for everybody: sparse sums of fixed directions with noise. Imports nothing but torch."""

from collections.abc import Iterator

import torch
from torch import Tensor

DIRECTIONS = 4
"""True directions for each dimension."""
ACTIVE = 16
"""Of them in a row."""


def rows(d: int, batch: int, seed: int = 0) -> Iterator[Tensor]:
    """Endless batches [batch, d] of fp32, mean square norm about 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS * d, d, generator=generator), dim=-1)
    while True:
        picked = torch.randint(len(directions), (batch, ACTIVE), generator=generator)
        weights = torch.rand(batch, ACTIVE, generator=generator) * (3 / ACTIVE) ** 0.5
        x = torch.nn.functional.embedding_bag(picked, directions, mode="sum", per_sample_weights=weights)
        yield x + 0.1 * d**-0.5 * torch.randn(batch, d, generator=generator)


def held_out(d: int, batch: int, steps: int, n: int, seed: int = 0) -> Tensor:
    """The `n` rows [n, d] that follow the first `steps` batches: of the same directions, and nobody's training rows."""
    stream = rows(d, batch, seed)
    for _ in range(steps):
        next(stream)
    return torch.cat([next(stream) for _ in range(-(-n // batch))])[:n]
