"""Shrinkage: by how much what is written back falls short of what was there, around the means of both.

`Reconstruction.shrinkage` is the published ratio around 0, where a large mean, which any bias writes back, hides what
happens to the rest. This one does not move where a constant is added to the activations and to the bias.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape

ROWS_AT_ONCE = 4096
"""Rows of latents that are dense at a time."""
DEPENDENT = 1e-10
"""What varies less than this share of what varies most is left out of a fit."""
NAMES = ("n", "dots", "written", "moved", "moved_hat")
"""Places, (x - r) . (x_hat - r), |x_hat - r|^2, x - r, x_hat - r; r is `reference`."""


class Shrinkage:
    """Sums over places, one row per sequence, fp64, around a fixed vector near the mean. Order and size of batches
    change nothing."""

    def __init__(self, n_sequences: int, reference: Float[Tensor, " d"]) -> None:
        self.reference = reference.double()
        shapes = [(n_sequences,)] * 3 + [(n_sequences, len(reference))] * 2
        self.sums = {name: np.zeros(shape) for name, shape in zip(NAMES, shapes, strict=True)}

    def update(
        self, x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"], sequences: Int[Tensor, " rows"]
    ) -> None:
        """Add places. sequences: the index of each, in 0..n_sequences-1."""
        at = sequences.cpu().numpy()
        x, x_hat = x.double() - self.reference, x_hat.double() - self.reference
        added = (x.new_ones(len(x)), (x * x_hat).sum(-1), x_hat.square().sum(-1), x, x_hat)
        for name, value in zip(NAMES, added, strict=True):
            np.add.at(self.sums[name], at, value.cpu().numpy())


def shrinkage(sums: Mapping[str, Float[np.ndarray, "draws ..."]]) -> Float[np.ndarray, " draws"]:
    """1 - gamma, gamma = Var(x_hat) / Cov(x, x_hat), traces: 0 unbiased, 0.2 a fifth too short, below 0 too long.

    gamma is the scale that minimises E|(x_hat - mean) / gamma - (x - mean)|^2: divided by it, what is written back fits
    best. NaN where x_hat has no component along x. Source: Rajamanoharan et al. 2024, arXiv:2404.16014, equation 10;
    differs: around the means.
    """
    n, moved, moved_hat = sums["n"], sums["moved"], sums["moved_hat"]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = sums["written"] / n - np.square(moved_hat / n[..., None]).sum(-1)
        covariance = sums["dots"] / n - (moved * moved_hat).sum(-1) / n**2
        return np.where(covariance > 0, 1 - variance / covariance, np.nan)


def refit(
    z: Latents, atoms: Float[Tensor, "L d"], x: Float[Tensor, "rows d"]
) -> tuple[Float[Tensor, "L d"], Float[Tensor, " d"]]:
    """The atoms at the lengths, and the bias, fp64, that write x back from these latents with the least squared error.

    What is written so has no shrinkage on these rows, however well or badly it fits: its errors do not go with it. One
    number a latent is fitted, not a direction, so that little is fitted to what these rows only happen to have. Raises
    WrongShape for other numbers of rows.
    """
    offsets = z.offsets
    if len(x) != len(offsets) - 1:
        raise WrongShape(f"{len(x)} rows for {len(offsets) - 1} rows of latents: a refit needs the same places.")
    W, mean_x = atoms.double(), x.double().mean(0)
    mean_z = W.new_zeros(len(W)).index_add_(0, z.ids, z.values.double()) / len(x)
    together, along = W.new_zeros(len(W), len(W)), W.new_zeros(len(W))
    for start in range(0, len(x), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(x))
        kept = slice(int(offsets[start]), int(offsets[stop]))
        dense = W.new_zeros(stop - start, len(W))
        dense[z.rows[kept] - start, z.ids[kept]] = z.values[kept].double()
        dense -= mean_z
        together += dense.T @ dense
        along += (dense * ((x[start:stop].double() - mean_x) @ W.T)).sum(0)
    lengths = torch.linalg.pinv(together * (W @ W.T), rtol=DEPENDENT, hermitian=True) @ along
    W = lengths[:, None] * W
    return W, mean_x - mean_z @ W
