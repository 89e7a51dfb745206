"""Axes: where a value lies between 0 and 100 per cent of a plot's width or height, and which ticks to name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from understudy.web.numerals import number, plain


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] onto 0..100, after `kind`; `bend` is where an asinh axis turns from linear to logarithmic."""

    low: float
    high: float
    kind: Literal["linear", "log", "asinh"] = "linear"
    bend: float = 1.0

    def _bent(self, value: float) -> float:
        if self.kind == "log":
            return math.log10(max(value, 1e-300))
        if self.kind == "asinh":
            return math.asinh(value / self.bend)
        return value

    def __call__(self, value: float) -> float:
        low, high = self._bent(self.low), self._bent(self.high)
        if high == low:
            return 50.0
        return round(100 * min(1.0, max(0.0, (self._bent(value) - low) / (high - low))), 3)

    def ticks(self, about: int = 5, gap: float = 13.0) -> list[float]:
        """Round values inside the range, at least `gap` per cent apart."""
        if self.kind == "linear":
            return linear_ticks(self.low, self.high, about)
        kept: list[float] = []
        for tick in sorted(self._candidates(), key=_roundness):
            inside = self.low <= tick <= self.high
            if inside and all(abs(self(tick) - self(other)) >= gap for other in kept):
                kept.append(tick)
        return sorted(kept)

    def _candidates(self) -> list[float]:
        top = max(abs(self.low), abs(self.high), 1e-12)
        bottom = self.low if self.kind == "log" else self.bend / 2
        powers = range(math.floor(math.log10(max(bottom, 1e-12))), math.ceil(math.log10(top)) + 1)
        steps = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        return steps if self.kind == "log" else [0.0, *steps, *(-s for s in steps)]


def _roundness(tick: float) -> tuple[int, float]:
    """0 first, then powers of ten, then fives and twos; larger ones first, where an asinh axis is crowded least."""
    if tick == 0:
        return 0, 0.0
    mantissa = abs(tick) / 10 ** math.floor(math.log10(abs(tick)) + 1e-9)
    return (1 if abs(mantissa - 1) < 1e-6 else 2), -abs(tick)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def spanning(values: Sequence[float], zero: bool = False, margin: float = 0.05) -> Scale:
    """A linear scale around values, with a margin; from 0 if asked."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    pad = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low if zero and low == 0 else low - pad, high if zero and high == 0 else high + pad)


def around_zero(values: Sequence[float], near: float) -> Scale:
    """An axis of differences from 0: linear, or asinh with its bend at `near` if the largest would squash it."""
    low, high = min(0.0, *values), max(0.0, *values)
    near = abs(near) or min((abs(v) for v in values if v), default=1.0)
    if high - low <= 8 * near:
        return spanning([low, high], zero=True)
    kind: Literal["asinh"] = "asinh"
    return Scale(low * 1.2, high * 1.15, kind, near)


def tick_text(tick: float, ticks: Sequence[float] = ()) -> str:
    """A tick with as many decimals as tell it from its neighbours, short for thousands and millions."""
    if abs(tick) < 1e-12:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(tick) >= size:
            return f"{tick / size:.3g}".replace("-", "−") + letter
    gaps = [abs(a - b) for a, b in pairwise(ticks) if a != b]
    step = min(gaps, default=abs(tick))
    fine = min(step, abs(tick))
    if fine < 1e-3:
        return plain(tick).replace(".00e", "e")
    places = max(0, min(5, -math.floor(math.log10(fine) + 1e-9)))
    if round(tick, places) != round(tick, places + 1):
        places += 1
    return number(tick, places)
