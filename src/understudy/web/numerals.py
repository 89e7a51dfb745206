"""Figures as text: digits follow the interval, minus signs are minus signs, what was not measured says why."""

import math

from understudy.core.records.metric import Measured, Metric, NotMeasured
from understudy.web.markup import Markup, join, tag

MINUS = "−"
PERCENT = frozenset({"fraction", "share"})
COUNTS = frozenset({"FLOPs", "FLOP", "tokens", "places", "parameters"})
_POWERS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def decimals(metric: Measured, scale: float = 1.0) -> int:
    """Decimal places by the half-width of the interval: two digits of it up to 35, then one; at most 4."""
    half = (metric.high - metric.low) / 2 * scale
    if exactly(metric):
        size = abs(metric.value * scale)
        return 0 if size >= 100 or size == 0 else min(4, 2 - math.floor(math.log10(size)))
    power = math.floor(math.log10(half))
    return max(0, min(4, (1 if half / 10**power < 3.55 else 0) - power))


def exactly(metric: Measured) -> bool:
    """Without an interval, or with one that is rounding alone."""
    return metric.high - metric.low <= 1e-9 * max(abs(metric.low), abs(metric.high))


def number(value: float, places: int, sign: bool = False) -> str:
    """Fixed decimals, thousands apart, a true minus."""
    text = f"{abs(value):,.{places}f}"
    nothing = not text.strip("0.,")
    if value < 0 and not nothing:
        return MINUS + text
    return f"+{text}" if sign and not nothing else text


def plain(value: float) -> str:
    """Three significant digits, for values without interval."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return number(value, 0 if size >= 100 else min(5, 2 - math.floor(math.log10(size))))


def percent(share: float) -> str:
    """A share as per cent; small ones keep two digits."""
    scaled = 100 * share
    if not math.isfinite(scaled):
        return "not finite"
    if scaled == 0:
        return "0%"
    if abs(scaled) >= 99.95 or abs(scaled) >= 10:
        return f"{number(scaled, 0 if abs(scaled - round(scaled)) < 0.05 else 1)}%"
    return f"{number(scaled, min(5, 1 - math.floor(math.log10(abs(scaled)))))}%"


def count(value: float) -> str:
    """A large count in short: 12.3 M."""
    for size, letter in _POWERS:
        if abs(value) >= max(size, 1e4):
            return f"{number(value / size, 1 if abs(value) < 100 * size else 0)} {letter}"
    return number(value, 0)


def as_text(metric: Metric, sign: bool = False, with_percent: bool = True) -> tuple[str, str, str]:
    """(value, interval, unit); interval is empty for exact figures; all say so if not measured."""
    if isinstance(metric, NotMeasured):
        return "not measured", "", metric.not_measured
    if metric.unit in COUNTS and abs(metric.value) >= 1e4:
        interval = "" if exactly(metric) else f"[{count(metric.low)}, {count(metric.high)}]"
        return count(metric.value), interval, metric.unit
    scale, unit = (100.0, "%") if with_percent and metric.unit in PERCENT else (1.0, metric.unit)
    places = decimals(metric, scale)
    value = number(metric.value * scale, places, sign)
    if exactly(metric):
        return value, "", unit
    low, high = (number(end * scale, places, sign) for end in (metric.low, metric.high))
    return value, f"[{low}, {high}]", unit


def figure(metric: Metric, sign: bool = False, with_percent: bool = True, unit: bool = True) -> Markup:
    """A figure inline: value, 95% interval, unit; the sample size on hover. `unit`: name it, unless it is per cent."""
    value, interval, what = as_text(metric, sign, with_percent)
    if isinstance(metric, NotMeasured):
        return tag("span", value, ": ", what, class_="missing")
    shown = join(value, "%" if what == "%" else None)
    body = [tag("span", shown, class_="value")]
    if interval:
        body += [" ", tag("span", interval, class_="interval")]
    if unit and what not in ("%", "fraction", ""):
        body += [" ", tag("span", what, class_="unit")]
    return tag("span", *body, class_="figure", title=f"n = {metric.n:,}")
