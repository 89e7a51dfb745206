"""Reconstruction: how well a dictionary writes back the activations of one site. Sums per sequence, fp64, mergeable."""

from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.latents import CHUNK_BYTES
from understudy.core.records.errors import BadActivations, WrongShape
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.site import Site

_CONSTANT = 1e-13
"""Share of the mean square below which the variance is the rounding of fp32, not signal."""


class Reconstruction:
    """Sums over the real places of one site, one row per sequence.

    Everything that a figure needs is a sum over places, so the order of batches, their size and padding change
    nothing, and shards add up. Variance is accumulated around `reference`, a fixed vector near the mean: around 0 it
    would be the small difference of two large numbers where activations have a large mean. Holds n_sequences x d
    numbers in fp64.
    """

    def __init__(self, site: Site | str, n_sequences: int, reference: Float[np.ndarray, " d"] | None = None) -> None:
        """reference: None takes the mean of the first batch."""
        self.site, self.n_sequences = str(site), n_sequences
        self.reference = None if reference is None else np.asarray(reference, np.float64)
        self.n_batches = 0
        self.n = np.zeros(n_sequences)
        """Real places. The other sums follow, in the order of `_SUMS`."""
        self.squares, self.errors, self.written, self.dots, self.cosines = (np.zeros(n_sequences) for _ in range(5))
        self.moved = np.zeros((n_sequences, 0 if reference is None else len(reference)))
        """Sum of x - reference, [n_seq, d]."""

    _SUMS = ("n", "squares", "errors", "written", "dots", "cosines", "moved")
    """Places, |x - reference|^2, |x - x_hat|^2, |x_hat|^2, x . x_hat, cos(x, x_hat), x - reference."""

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "b *places d"],
        x_hat: Float[Tensor, "b *places d"],
        sequences: Int[Tensor, " b"],
        mask: Bool[Tensor, " b *places"] | None = None,
    ) -> None:
        """Add a batch. sequences: index of each of its rows, in 0..n_sequences-1. What masked places hold is not read.

        Raises BadActivations at NaN or infinity in a real place, WrongShape if shapes do not fit.
        """
        if x.shape != x_hat.shape or len(sequences) != len(x) or (mask is not None and mask.shape != x.shape[:-1]):
            raise WrongShape(
                f"At {self.site}: x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}, {len(sequences)} sequence indices, "
                f"mask {None if mask is None else tuple(mask.shape)} do not fit each other."
            )
        if self.reference is not None and len(self.reference) != x.shape[-1]:
            raise WrongShape(f"{self.site} had width {len(self.reference)} before and has {x.shape[-1]} now.")
        step = max(1, CHUNK_BYTES // max(1, 8 * prod(x.shape[1:])))
        for i in range(0, len(x), step):
            part = slice(i, i + step)
            self._update(x[part], x_hat[part], sequences[part], None if mask is None else mask[part])
        self.n_batches += 1

    def _update(self, x: Tensor, x_hat: Tensor, sequences: Tensor, mask: Tensor | None) -> None:
        device = "cpu" if x.device.type == "mps" else x.device  # fp64 does not exist there
        x, x_hat = (t.to(device).reshape(len(t), -1, t.shape[-1]) for t in (x, x_hat))
        if mask is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
        else:
            real = mask.to(device).reshape(x.shape[:2])
            x, x_hat = (t.masked_fill(~real[..., None], 0) for t in (x, x_hat))
        x, x_hat = x.double(), x_hat.double()
        self._check(x, "activations", sequences)
        self._check(x_hat, "reconstruction", sequences)
        if self.reference is None:
            if not real.any():
                return
            self.reference = (x.sum((0, 1)) / real.sum()).cpu().numpy()
            self.moved = np.zeros((self.n_sequences, len(self.reference)))
        moved = (x - torch.from_numpy(self.reference).to(device)).masked_fill_(~real[..., None], 0)
        dots, written, length = (x * x_hat).sum(-1), x_hat.square().sum(-1), x.square().sum(-1)
        cosines = dots / (written.sqrt() * length.sqrt()).clamp(min=1e-300)
        places = {
            "n": real.double(),
            "squares": moved.square().sum(-1),
            "errors": (x - x_hat).square().sum(-1),
            "written": written,
            "dots": dots,
            "cosines": cosines,
            "moved": moved,
        }
        where = sequences.cpu().numpy()
        for name, value in places.items():
            np.add.at(getattr(self, name), where, value.sum(1).cpu().numpy())

    def _check(self, x: Tensor, what: str, sequences: Tensor) -> None:
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if bad.any():
            first = int(sequences[int(bad.nonzero()[0])])
            raise BadActivations(
                f"The {what} at {self.site} are not finite in batch {self.n_batches}, sequence {first}. NaN or "
                f"infinity in one place makes every figure NaN; mask the place or find where it comes from."
            )

    def merge(self, other: "Reconstruction") -> "Reconstruction":
        """The sums of both, around this one's reference; the same as if one had seen all batches."""
        if (self.site, self.n_sequences) != (other.site, other.n_sequences):
            raise WrongShape(f"Cannot merge {self.site} x {self.n_sequences} with {other.site} x {other.n_sequences}.")
        first, second = (self, other) if self.reference is not None else (other, self)
        both = Reconstruction(self.site, self.n_sequences, first.reference)
        both.n_batches = self.n_batches + other.n_batches
        if first.reference is not None and second.reference is not None:
            shift = second.reference - first.reference
            squares = second.squares + 2 * second.moved @ shift + second.n * (shift @ shift)
            moved = second.moved + second.n[:, None] * shift
        else:
            squares, moved = second.squares, np.zeros_like(first.moved)
        for name in self._SUMS:
            added = {"squares": squares, "moved": moved}.get(name, getattr(second, name))
            setattr(both, name, getattr(first, name) + added)
        return both

    def fvu(self, bootstrap: Bootstrap) -> Metric:
        """Fraction of variance unexplained: squared error over squared distance from the mean of the whole set.

        0 = identity, 1 = as good as writing the mean everywhere; above 1 is possible. The mean is taken again in each
        resample. Explained variance is 1 - fvu.
        """
        if reason := self._constant():
            return reason
        return bootstrap.summarise(self.fvu_draws(bootstrap), "fraction", bootstrap.units(self.n))

    def fvu_draws(self, bootstrap: Bootstrap) -> Float[np.ndarray, " draws"]:
        """`fvu` in each draw; the difference of two of these is paired, and `bootstrap.summarise` makes it a figure."""

        def fvu(n: np.ndarray, moved: np.ndarray, squares: np.ndarray, errors: np.ndarray) -> np.ndarray:
            return errors / (squares - np.square(moved).sum(-1) / n)

        return bootstrap.draws(fvu, n=self.n, moved=self.moved, squares=self.squares, errors=self.errors)

    def fvu_difference(self, other: "Reconstruction", bootstrap: Bootstrap) -> Metric:
        """fvu of this minus fvu of the other, paired: the same places of the same sequences under two dictionaries.

        Raises WrongShape if they saw different numbers of places in some sequence.
        """
        if not np.array_equal(self.n, other.n):
            raise WrongShape("A paired difference needs the same places on both sides; the counts per sequence differ.")
        if reason := self._constant() or other._constant():
            return reason
        difference = self.fvu_draws(bootstrap) - other.fvu_draws(bootstrap)
        return bootstrap.summarise(difference, "fraction", bootstrap.units(self.n))

    def shrinkage(self, bootstrap: Bootstrap) -> Metric:
        """gamma = E|x_hat|^2 / E[x . x_hat]: 1 unbiased, under 1 the reconstruction is too short, above 1 too long.

        Source: Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated SAEs, equation 10.
        """
        if self.dots.sum() <= 0:
            return NotMeasured(not_measured=f"the reconstruction at {self.site} has no component along the activations")
        return bootstrap.figure(
            lambda written, dots: np.where(dots > 0, written / dots, np.nan),
            "fraction",
            present=self.n,
            written=self.written,
            dots=self.dots,
        )

    def cosine(self, bootstrap: Bootstrap) -> Metric:
        """Mean over places of cos(x, x_hat), around 0, not the mean; a place where either is 0 counts as 0."""
        return bootstrap.ratio(self.cosines, self.n, "cosine")

    def mse(self, bootstrap: Bootstrap) -> Metric:
        """Squared error per place, summed over the d dimensions."""
        return bootstrap.ratio(self.errors, self.n, "squared activation")

    def _constant(self) -> NotMeasured | None:
        n = self.n.sum()
        if self.reference is None or n == 0:
            return NotMeasured(not_measured=f"no real place was seen at {self.site}")
        moved, squares = self.moved.sum(0), self.squares.sum()
        size = squares + 2 * moved @ self.reference + n * (self.reference @ self.reference)
        if squares - moved @ moved / n > _CONSTANT * size:
            return None
        return NotMeasured(not_measured=f"{self.site} is constant over all {int(n)} places: no variance to explain")
