"""How many times as long one thing takes as another, where both are timed in turns."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from understudy.core.bootstrap import student_t

NARROW = 0.05
"""Turns are taken until the interval ends this share from its ratio."""
WIDE = 0.15
"""From an interval that ends further away nothing is concluded."""
LEAST = 4
"""Turns that an interval needs. Stopping where it is narrow costs it some 3 points from 4 on, hardly any from 7."""


class Ratio(NamedTuple):
    """Mean of the logarithms over turns, with Student's 95% interval: what slows both down cancels."""

    log: float
    variance: float
    """Of the mean."""
    freedom: float
    """Degrees of it."""

    @classmethod
    def of(cls, step: Sequence[float], floor: Sequence[float]) -> "Ratio":
        """Seconds of each turn, at least LEAST."""
        logs = [math.log(s / f) for s, f in zip(step, floor, strict=True)]
        return cls(statistics.mean(logs), statistics.variance(logs) / len(logs), len(logs) - 1)

    def over(self, other: "Ratio") -> "Ratio":
        """Of ratios to the same floor, measured apart. Degrees of freedom: Welch 1947."""
        variance = self.variance + other.variance
        parts = self.variance**2 / self.freedom + other.variance**2 / other.freedom
        freedom = variance**2 / parts if parts > 0 else min(self.freedom, other.freedom)
        return Ratio(self.log - other.log, variance, freedom)

    @property
    def value(self) -> float:
        return math.exp(self.log)

    @property
    def interval(self) -> tuple[float, float]:
        return math.exp(self.log - self._half), math.exp(self.log + self._half)

    @property
    def _half(self) -> float:
        return student_t(self.freedom) * self.variance**0.5

    def within(self, share: float) -> bool:
        """Whether the interval's upper end is at most this share above the value."""
        return self._half <= math.log1p(share)


class Turns(NamedTuple):
    """Seconds of each turn."""

    step: list[float]
    floor: list[float]
    """Of turn i: the geometric mean of one before it and one after, its own, so that turns are independent."""

    @property
    def ratio(self) -> Ratio:
        return Ratio.of(self.step, self.floor)


def in_turns(floor: Callable[[], float], step: Callable[[], float], least: int, most_s: float) -> Turns:
    """Both return seconds. At least `least` turns, then more until the ratio's interval is narrow or the steps have
    taken `most_s`."""
    found = Turns([], [])
    while len(found.step) < least or (not found.ratio.within(NARROW) and sum(found.step) < most_s):
        before = floor()
        found.step.append(step())
        found.floor.append((before * floor()) ** 0.5)
    return found
