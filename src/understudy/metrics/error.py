"""Error: what a dictionary misses at a site - in how few directions it lies, and how much of it its input foretells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Metric, NotMeasured

RIDGE = 1e-4
"""Of the mean square of an input coordinate, added to the diagonal of its covariance."""


@dataclass(frozen=True)
class LinearMap:
    """The least-squares map from an input to an error, and the mean error that it is measured against."""

    W: Float[Tensor, "d_in d_out"]
    x_mean: Float[Tensor, " d_in"]
    e_mean: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return (x.double() - self.x_mean) @ self.W + self.e_mean


class ErrorFit:
    """Sums over training rows, in fp64: enough for the error's directions and for linear maps from the input.

    The control is the same map fitted to inputs that were shuffled among the rows of each update: all that is left in
    it is chance, and on held-out rows it must predict nothing.
    """

    def __init__(self, d_in: int, d_out: int, seed: int = 0) -> None:
        self.n = 0
        self._x, self._e = torch.zeros(d_in, dtype=torch.float64), torch.zeros(d_out, dtype=torch.float64)
        self._xx = torch.zeros(d_in, d_in, dtype=torch.float64)
        self._xe = torch.zeros(d_in, d_out, dtype=torch.float64)
        self._xe_shuffled = torch.zeros(d_in, d_out, dtype=torch.float64)
        self._ee = torch.zeros(d_out, d_out, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, x: Float[Tensor, "n d_in"], e: Float[Tensor, "n d_out"]) -> None:
        """Add rows: what is read, and what is missed."""
        if len(x) != len(e):
            raise WrongShape(f"{len(x)} rows of input do not fit {len(e)} rows of error.")
        x, e = x.detach().cpu().double(), e.detach().cpu().double()
        self.n += len(x)
        self._x += x.sum(0)
        self._e += e.sum(0)
        self._xx += x.T @ x
        self._xe += x.T @ e
        self._ee += e.T @ e
        self._xe_shuffled += x[torch.randperm(len(x), generator=self._generator)].T @ e

    def directions(self) -> Float[Tensor, "d_out d_out"]:
        """Orthonormal rows, the direction that holds most of the squared error first; the mean error is not removed."""
        return torch.linalg.eigh(self._ee).eigenvectors.T.flip(0)

    def linear(self, shuffled: bool = False) -> LinearMap:
        """The ridge regression of the error on the input; `shuffled`: the control."""
        x, e = self._x / self.n, self._e / self.n
        cross = (self._xe_shuffled if shuffled else self._xe) / self.n - torch.outer(x, e)
        covariance = self._xx / self.n - torch.outer(x, x)
        strength = RIDGE * float(covariance.diagonal().mean()) or 1.0
        W = torch.linalg.solve(covariance + strength * torch.eye(len(x), dtype=torch.float64), cross)
        return LinearMap(W, x, e)


class ErrorSums:
    """Sums over held-out rows by sequence: squared error, its part in the first directions, what maps leave of it."""

    def __init__(self, n_sequences: int, fit: ErrorFit, ranks: Sequence[int]) -> None:
        """ranks: how many directions; each at most the width."""
        self.ranks, self._directions = tuple(ranks), fit.directions()
        self._maps = (fit.linear(), fit.linear(shuffled=True))
        if wrong := [r for r in ranks if not 0 < r <= len(self._directions)]:
            raise WrongShape(f"the error has {len(self._directions)} directions; asked for its first {wrong[0]}.")
        self.rows = np.zeros(n_sequences)
        self._squares, self._within = np.zeros(n_sequences), np.zeros((n_sequences, len(self.ranks)))
        self._spread, self._left = np.zeros(n_sequences), np.zeros((n_sequences, 2))

    def update(self, x: Float[Tensor, "n d_in"], e: Float[Tensor, "n d_out"], sequence: Int[Tensor, " n"]) -> None:
        """Add rows, each with the index of its sequence."""
        x, e = x.detach().cpu().double(), e.detach().cpu().double()
        at = sequence.cpu().numpy()
        along = (e @ self._directions.T).square().cumsum(1)
        np.add.at(self.rows, at, 1)
        np.add.at(self._squares, at, e.square().sum(1).numpy())
        np.add.at(self._within, at, along[:, [r - 1 for r in self.ranks]].numpy())
        np.add.at(self._spread, at, (e - self._maps[0].e_mean).square().sum(1).numpy())
        left = torch.stack([(e - f(x)).square().sum(1) for f in self._maps], 1)
        np.add.at(self._left, at, left.numpy())

    def share(self, rank: int, bootstrap: Bootstrap) -> Metric:
        """Share of the squared error in its first `rank` directions, which were found on training rows."""
        if not self._squares.any():
            return NotMeasured(not_measured="there is no error")
        within = self._within[:, self.ranks.index(rank)]
        return bootstrap.figure(lambda a, b: a / b, "fraction", present=self.rows, a=within, b=self._squares)

    def predictable(self, bootstrap: Bootstrap, shuffled: bool = False) -> Metric:
        """R2 of the linear map on held-out rows: 1 - what it leaves / the error's spread around its training mean.

        1: a linear map would repair the dictionary. 0: none helps. Below 0 the map is worse than the mean. `shuffled`:
        the control, which must be about 0.
        Idea: Engels and others 2024, "Decomposing the dark matter of sparse autoencoders", section 4, who predict the
        error vector from the activation; here it is predicted from what the dictionary reads.
        """
        if not self._spread.any():
            return NotMeasured(not_measured="there is no error, or it is the same everywhere")
        left = self._left[:, int(shuffled)]
        return bootstrap.figure(lambda a, b: 1 - a / b, "fraction", present=self.rows, a=left, b=self._spread)
