"""Compute: loss against training compute on a ladder of networks, and the compute that a loss is worth."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Metric, NotMeasured


def equivalent_compute(
    bootstrap: Bootstrap,
    loss: Shaped[np.ndarray, " n_seq"],
    loss_by_rung: Shaped[np.ndarray, "rungs n_seq"],
    flops: Float[np.ndarray, " rungs"],
    counts: Shaped[np.ndarray, " n_seq"],
    counts_by_rung: Shaped[np.ndarray, "rungs n_seq"] | None = None,
) -> Metric:
    """The least training compute at which the ladder reaches a loss, in FLOPs.

    loss, loss_by_rung: sums in nats over the same `counts` places (or bits over the same bytes) of each sequence;
    flops: what each rung was trained with, rising. counts_by_rung: where rungs have counts of their own, as bytes of
    the same text do under other tokenizers. Each resample takes the loss and every rung anew, so the interval holds the
    sampling error of both; it does not hold that of training the rungs again.

    Between neighbouring rungs the law is a power law: log compute is linear in log loss. No law is fitted over all
    rungs: a handful of points does not determine an irreducible loss, and a wrong one would move every figure, while
    the chord between two rungs is what was measured. If the true law has an irreducible loss, the chord lies above it
    and the compute is too large: by under 7% for rungs 6 times apart in the cases of our tests. A rung that is no
    better than one that cost less is passed over. Nothing is extrapolated: NotMeasured beyond the best rung and below
    the cheapest one; resamples that fall outside count as the ends.
    Idea: Gao and others 2024, "Scaling and evaluating sparse autoencoders", section 4.1; theirs is a fitted law.
    """
    losses, reached, n = _means(bootstrap, loss, loss_by_rung, flops, counts, counts_by_rung)
    if n < 2:
        return bootstrap.summarise(np.zeros(1), "FLOPs", n)
    if (losses[0] <= 0).any() or reached[0] <= 0:
        return NotMeasured(not_measured="a loss of 0 or less has no place on a ladder")
    best, at = _frontier(losses)
    if (better := best[0, -1] - reached[0]) > 0:
        return NotMeasured(
            not_measured=f"more than {flops[at[0, -1]]:.2g} FLOPs: the best rung of the ladder is {better:.3g} worse"
        )
    if (worse := reached[0] - best[0, 0]) > 0:
        return NotMeasured(
            not_measured=f"less than {flops[0]:.2g} FLOPs: the cheapest rung of the ladder is {worse:.3g} better"
        )
    upper = (best > reached[:, None]).sum(1).clip(1, len(flops) - 1)
    rows = np.arange(len(best))
    with np.errstate(divide="ignore", invalid="ignore"):
        above, under, here = (np.log(x) for x in (best[rows, upper - 1], best[rows, upper], reached))
        part = np.where(here >= above, 0, np.where(here <= under, 1, (above - here) / (above - under)))
    low, high = np.log(flops[at[rows, upper - 1]]), np.log(flops[at[rows, upper]])
    return bootstrap.summarise(np.where(np.isfinite(reached), np.exp(low + part * (high - low)), np.nan), "FLOPs", n)


class PowerLaw(NamedTuple):
    """One straight line of log loss against log compute through all rungs, by least squares: a summary."""

    doubling: Metric
    """What a doubling of compute multiplies the loss by."""
    misfit: Metric
    """Largest distance of a rung from the line, as a fraction of its loss: above its noise, the law bends."""


def power_law(
    bootstrap: Bootstrap,
    loss_by_rung: Shaped[np.ndarray, "rungs n_seq"],
    flops: Float[np.ndarray, " rungs"],
    counts_by_rung: Shaped[np.ndarray, "rungs n_seq"],
) -> PowerLaw | NotMeasured:
    """The line through a ladder's rungs, with the intervals of its slope and of its worst misfit.

    NotMeasured with fewer than 3 rungs, through which a line says nothing of its fit.
    """
    if len(flops) < 3:
        return NotMeasured(not_measured=f"a line needs at least 3 rungs to be tested; there are {len(flops)}")
    first = counts_by_rung[0]
    losses, _, n = _means(bootstrap, first, loss_by_rung, flops, first, counts_by_rung)
    if n < 2:
        few = bootstrap.summarise(np.zeros(1), "factor", n)
        return PowerLaw(few, few)
    x, y = np.log2(flops), np.log2(losses)
    x = x - x.mean()
    slope = (y @ x) / (x @ x)
    line = y.mean(1, keepdims=True) + slope[:, None] * x
    misfit = np.abs(2 ** (y - line) - 1).max(1)
    return PowerLaw(bootstrap.summarise(2**slope, "factor", n), bootstrap.summarise(misfit, "fraction", n))


def _means(
    bootstrap: Bootstrap,
    loss: np.ndarray,
    loss_by_rung: np.ndarray,
    flops: np.ndarray,
    counts: np.ndarray,
    counts_by_rung: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean losses of the rungs [draws, rungs] and of `loss` [draws], and the units they rest on."""
    if loss_by_rung.shape != (len(flops), len(loss)) or len(flops) < 2:
        raise WrongShape(
            f"loss_by_rung {loss_by_rung.shape} must be [{len(flops)} rungs, {len(loss)} sequences], 2 rungs at least."
        )
    if (np.diff(flops) <= 0).any() or flops[0] <= 0:
        raise WrongShape(f"rungs must come in the order of their compute, each different: {flops.tolist()}.")
    each = np.broadcast_to(counts, loss_by_rung.shape) if counts_by_rung is None else counts_by_rung
    s = bootstrap.sums(loss=loss, rungs=loss_by_rung.T, counts=counts, each=each.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        return s["rungs"] / s["each"], s["loss"] / s["counts"], bootstrap.units(counts)


def _frontier(losses: Float[np.ndarray, "draws rungs"]) -> tuple[np.ndarray, np.ndarray]:
    """The best loss so far along the rungs, and the rung that first reached it."""
    best = np.minimum.accumulate(losses, axis=1)
    new = np.concatenate([np.ones_like(best[:, :1], bool), np.diff(best, axis=1) < 0], axis=1)
    return best, np.maximum.accumulate(np.where(new, np.arange(losses.shape[1]), 0), axis=1)
