"""Laws over a grid of runs: loss by width and L0, the best learning rate by width. Fitted in every resample."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from understudy.core.records.errors import WrongShape

Draws = Float[np.ndarray, "draws runs"]


class JointLaw(NamedTuple):
    """ln L = a + b_k ln(k / k0) + b_n ln(n / n0) + g ln(k / k0) ln(n / n0), by least squares in each draw.

    The reducible term of Gao et al. 2024 (arXiv:2406.04093, section 3.1.3), counted from the middle of the grid (k0, n0
    are geometric means), so that b_n is the exponent of n there. Differs: they add an irreducible term, which a small
    grid cannot tell apart from the others.
    """

    coefficients: Float[np.ndarray, "draws 4"]
    """a, b_k, b_n, g."""
    middle: tuple[float, float]
    """k0, n0."""
    left_out: Draws
    """For each run, what the law fitted on the others predicts for it, over what it measured, minus 1."""

    def predict(self, k: Float[np.ndarray, " m"], n: Float[np.ndarray, " m"]) -> Float[np.ndarray, "draws m"]:
        return np.exp(self.coefficients @ _terms(k, n, self.middle).T)


def joint_law(losses: Draws, k: Float[np.ndarray, " runs"], n: Float[np.ndarray, " runs"]) -> JointLaw:
    """Raises WrongShape for a grid that does not determine the law: 5 runs at least, at 2 widths and 2 k or more."""
    middle = (float(np.exp(np.log(k).mean())), float(np.exp(np.log(n).mean())))
    terms = _terms(k, n, middle)
    if losses.shape[1:] != k.shape or k.shape != n.shape:
        raise WrongShape(f"losses {losses.shape}, k {k.shape} and n {n.shape}: one k and one n for each run.")
    if len(k) < 5 or np.linalg.matrix_rank(terms) < 4:
        raise WrongShape(
            f"{len(k)} runs do not determine a law in k and n: 5 or more, at several widths and several k."
        )
    inverse = np.linalg.pinv(terms)
    logs = np.log(losses)
    coefficients = logs @ inverse.T
    leverage = np.diag(terms @ inverse)
    residual = logs - coefficients @ terms.T
    with np.errstate(divide="ignore", invalid="ignore"):
        missed = np.where(leverage < 1 - 1e-9, residual / (1 - leverage), np.nan)  # of the fit without that run
    return JointLaw(coefficients, middle, np.exp(-missed) - 1)


def _terms(k: np.ndarray, n: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    x, y = np.log(np.asarray(k, float) / middle[0]), np.log(np.asarray(n, float) / middle[1])
    return np.stack([np.ones_like(x), x, y, x * y], axis=1)


def best_rate(losses: Draws, rates: Float[np.ndarray, " runs"]) -> Float[np.ndarray, " draws"] | None:
    """The learning rate of least loss: the lowest point of the parabola in ln rate through the best rate tried and its
    neighbours. None where the best is the lowest or the highest tried: it may lie beyond."""
    order = np.argsort(rates)
    losses, x = losses[:, order], np.log(np.asarray(rates, float)[order])
    i = int(np.argmin(losses[0]))
    if i in (0, len(x) - 1):
        return None
    (x0, x1, x2), (y0, y1, y2) = x[i - 1 : i + 2], losses[:, i - 1 : i + 2].T
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curve = (right - left) / (x2 - x0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(curve > 0, np.exp((x0 + x1) / 2 - left / (2 * curve)), np.nan)


class RateLaw(NamedTuple):
    """ln rate = ln c + s ln(n / n0), by least squares in each draw. Gao et al. 2024 have s = -0.5."""

    slope: Float[np.ndarray, " draws"]
    at_middle: Float[np.ndarray, " draws"]
    middle: float
    """n0, the geometric mean of the widths."""

    def predict(self, n: float) -> Float[np.ndarray, " draws"]:
        return self.at_middle * (n / self.middle) ** self.slope


def rate_law(rates: Float[np.ndarray, "draws widths"], n: Float[np.ndarray, " widths"]) -> RateLaw:
    """Raises WrongShape with fewer than 2 widths."""
    if rates.shape[1:] != n.shape or len(n) < 2:
        raise WrongShape(f"a law of the learning rate needs 2 widths or more, and a rate at each; got {rates.shape}.")
    x = np.log(np.asarray(n, float))
    middle = x.mean()
    slope = np.log(rates) @ (x - middle) / ((x - middle) @ (x - middle))
    return RateLaw(slope, np.exp(np.log(rates).mean(1)), float(np.exp(middle)))
