"""Bootstrap: 95% intervals over sequences, from one set of resamples that every figure of a report shares."""

from collections.abc import Callable
from math import prod, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int, Shaped

from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Measured, Metric, NotMeasured

NOTHING_TO_RECOVER = 1e-3
"""Nats per place that a baseline must cost before "share of the damage avoided" means anything."""
_UNDEFINED_SHARE = 0.025
_CHUNK_BYTES = 1 << 26

Statistic = Callable[..., Float[np.ndarray, " draws"]]


class Bootstrap:
    """Resamples of sequences, drawn once: two figures from one Bootstrap see the same resamples, so they are paired.

    Sequences are the unit because places within one are not independent; `clusters` makes documents the unit where
    several sequences are rows of one document, which are not independent either. A figure is a function of sums over
    sequences; a resample weights each sequence by how often it was drawn. Every table of draws has 1 + n_resamples
    rows: row 0 is the data as it is, and gives the value.

    The interval is the percentile interval, widened for small samples by taking tail probability
    Phi(-sqrt(n / (n - 1)) t_{0.975, n - 1}) in place of 0.025; at n = 1000 the two are the same.
    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 3.2 ("expanded percentile").
    """

    def __init__(
        self,
        n_sequences: int,
        seed: int = 0,
        n_resamples: int = 1000,
        clusters: Shaped[np.ndarray, " n_seq"] | None = None,
    ) -> None:
        """clusters: the cluster of each sequence, drawn whole; None makes each sequence its own."""
        self.n_sequences, self.n_resamples = n_sequences, n_resamples
        given = np.arange(n_sequences) if clusters is None else clusters
        _, self._unit = np.unique(given, return_inverse=True)
        n_units = int(self._unit.max()) + 1 if n_sequences else 0
        rng = np.random.default_rng(seed)
        # A unit is drawn about Poisson(1) times, or at most n_units times: it fits in a byte either way.
        self._weights = np.ones((n_resamples + 1, n_sequences), np.uint8)
        for row in range(1, n_resamples + 1 if n_sequences else 0):
            drawn = rng.integers(0, n_units, n_units)
            self._weights[row] = np.bincount(drawn, minlength=n_units)[self._unit]

    @property
    def n_units(self) -> int:
        """Clusters, or sequences where there are none."""
        return self.units(np.ones(self.n_sequences))

    def units(self, present: Shaped[np.ndarray, " n_seq"]) -> int:
        """How many independent units hold something to measure (nonzero in `present`)."""
        self._check("present", present)
        return len(np.unique(self._unit[np.asarray(present) != 0]))

    def _check(self, name: str, array: np.ndarray) -> None:
        if array.shape[:1] != (self.n_sequences,):
            raise WrongShape(f"{name} has shape {array.shape}; one row for each of {self.n_sequences} sequences.")

    def sums(self, **arrays: Shaped[np.ndarray, "n_seq ..."]) -> dict[str, np.ndarray]:
        """Each array summed over sequences in each draw, in fp64: [n_seq, ...] becomes [1 + n_resamples, ...]."""
        flat = []
        for name, array in arrays.items():
            self._check(name, array)
            flat.append(np.asarray(array, np.float64).reshape(self.n_sequences, prod(array.shape[1:])))
        widths = np.cumsum([f.shape[1] for f in flat])[:-1]
        table = np.concatenate(flat, axis=1)
        step = max(1, _CHUNK_BYTES // max(1, 8 * self.n_sequences))
        summed = np.concatenate(
            [self._weights[i : i + step].astype(np.float64) @ table for i in range(0, len(self._weights), step)]
        )
        parts = np.split(summed, widths, axis=1)
        return {name: p.reshape(len(summed), *a.shape[1:]) for (name, a), p in zip(arrays.items(), parts, strict=True)}

    def draws(self, statistic: Statistic, /, **arrays: Shaped[np.ndarray, "n_seq ..."]) -> Float[np.ndarray, " draws"]:
        """The statistic of the summed arrays in each draw. It is vectorised: called once, with the draws first."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(statistic(**self.sums(**arrays)), np.float64)

    def summarise(self, draws: Float[np.ndarray, " draws"], unit: str, n: int) -> Metric:
        """Draws as a figure; n is how many sequences hold something to measure.

        NotMeasured with fewer than 2 of them, where row 0 is not finite, or where more than 2.5% of the resamples
        are not (those few sequences are missing from too many resamples); a smaller share is left out.
        """
        if n < 2:
            return NotMeasured(not_measured=f"an interval needs at least 2 sequences; {n} hold something to measure")
        defined = np.isfinite(draws)
        if not defined[0]:
            return NotMeasured(not_measured="undefined on these sequences (a division by zero)")
        if (share := 1 - defined[1:].mean()) > _UNDEFINED_SHARE:
            return NotMeasured(
                not_measured=f"undefined in {share:.0%} of the resamples: {n} of {self.n_sequences} sequences hold "
                f"something to measure, too few for an interval"
            )
        tail = _tail(n)
        low, high = np.quantile(draws[1:][defined[1:]], [tail, 1 - tail])
        value = float(draws[0])
        return Measured(value=value, low=min(float(low), value), high=max(float(high), value), unit=unit, n=n)

    def figure(
        self,
        statistic: Statistic,
        unit: str,
        /,
        present: Shaped[np.ndarray, " n_seq"] | None = None,
        **arrays: Shaped[np.ndarray, "n_seq ..."],
    ) -> Metric:
        """Any function of sums over sequences, e.g. `lambda sse, total: sse / total`.

        present: nonzero at the sequences that hold something to measure (they are counted as n); None means all.
        """
        n = self.n_units if present is None else self.units(present)
        return self.summarise(self.draws(statistic, **arrays), unit, n)

    def over_resamples(
        self, statistic: Callable[[Int[np.ndarray, " m"]], float], unit: str, n_resamples: int = 200
    ) -> Metric:
        """A figure that is no function of sums, e.g. a rank correlation. The statistic gets the indices of the
        sequences that were drawn, those drawn twice twice."""
        index = np.arange(self.n_sequences)
        draws = [statistic(np.repeat(index, times)) for times in self._weights[: 1 + n_resamples]]
        return self.summarise(np.array(draws, np.float64), unit, self.n_units)

    def ratio(
        self, numerator: Shaped[np.ndarray, " n_seq"], denominator: Shaped[np.ndarray, " n_seq"], unit: str
    ) -> Metric:
        """Sum over sum, e.g. a mean over places, where long sequences weigh more.

        n counts the sequences whose denominator is not 0.
        """
        return self.figure(lambda a, b: a / b, unit, present=denominator, a=numerator, b=denominator)

    def difference(
        self,
        a: Shaped[np.ndarray, " n_seq"],
        b: Shaped[np.ndarray, " n_seq"],
        denominator: Shaped[np.ndarray, " n_seq"],
        unit: str,
    ) -> Metric:
        """Paired (sum a - sum b) / sum denominator. An arm against itself gives exactly 0 with an interval of width 0.

        One is better than the other only where the interval excludes 0.
        """
        return self.ratio(np.asarray(a, np.float64) - np.asarray(b, np.float64), denominator, unit)

    def recovered(
        self,
        loss_baseline: Shaped[np.ndarray, " n_seq"],
        loss_replaced: Shaped[np.ndarray, " n_seq"],
        loss_clean: Shaped[np.ndarray, " n_seq"],
        counts: Shaped[np.ndarray, " n_seq"],
    ) -> Metric:
        """Share of the baseline's damage that the replacement avoids, (B - R) / (B - C); 1 = as good as the network.

        Losses are sums in nats over the same `counts` places. May be below 0 or above 1. NotMeasured if the baseline
        costs under 1e-3 nats per place, or is not clearly above that (in more than 2.5% of the resamples).
        """
        baseline, replaced, clean = (np.asarray(x, np.float64) for x in (loss_baseline, loss_replaced, loss_clean))
        s = self.sums(avoided=baseline - replaced, damage=baseline - clean, counts=np.asarray(counts, np.float64))
        n = self.units(counts)
        if n < 2 or s["counts"][0] == 0:
            return self.summarise(np.zeros(1), "fraction", min(n, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            damage = s["damage"] / s["counts"]
            draws = np.where(damage >= NOTHING_TO_RECOVER, s["avoided"] / s["damage"], np.nan)
        unclear = np.isnan(draws[1:]).mean()
        if np.isnan(draws[0]) or unclear > _UNDEFINED_SHARE:
            often = "" if np.isnan(draws[0]) else f", in {unclear:.0%} of the resamples under {NOTHING_TO_RECOVER:g}"
            return NotMeasured(
                not_measured=f"nothing to recover: the baseline costs {damage[0]:.2g} nats per place more than the "
                f"network{often}"
            )
        return self.summarise(draws, "fraction", n)


def student_t(freedom: float) -> float:
    """The 97.5% point of Student's t; too low by at most 1% from 3 degrees of freedom on (Cornish-Fisher expansion)."""
    z = NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def _tail(n: int) -> float:
    """Tail probability whose percentile interval has a nominal 95% with n units (see Bootstrap)."""
    return NormalDist().cdf(-sqrt(n / (n - 1)) * student_t(n - 1))
