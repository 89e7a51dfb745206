"""Which runs an arm needs so that its figure can be read off at one measured L0, and the reading off."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from understudy.core.records.metric import NotMeasured
from understudy.workflows._grid.cells import Cell, start_l1, takes_k
from understudy.workflows._grid.draws import Drawn, Draws

NEAR = 0.02
"""A run whose measured L0 is within this share of the wanted one is taken as it is."""
L1_LEVELS = (1.0, 2.0, 4.0)
"""Weights of a penalty that are tried first, over the rule's own: at narrow sites its own leaves many latents on."""
STRETCH = 1.1
"""How far a level for a missed L0 reaches beyond what is asked for, so that the two runs lie on both sides."""
AT_MOST = 8.0
"""How far from the outermost weight another may lie, as a ratio."""
APART = 2.0
"""Most that the L0s of the two runs may differ by, as a ratio, that a figure is read off between."""


class Reading(NamedTuple):
    """A figure at an L0, and the runs it lies between."""

    draws: Draws
    runs: tuple[int, ...]


def first_levels(rule: str, n_latents: int, width: int, l0: float) -> list[float]:
    """k for a rule that can be asked for its L0, else weights of its penalty."""
    if takes_k(rule):
        return [float(max(1, round(l0)))]
    return [share * start_l1(rule, n_latents, width) for share in L1_LEVELS]


def more_levels(runs: Sequence[Drawn], l0: float) -> list[float]:
    """A level to add; none where a run has the L0, where two lie close enough on both sides, or where none is left."""
    runs = sorted((r for r in runs if float(r.l0[0]) > 0), key=_l0)
    if not runs or any(_is_near(r, l0) for r in runs):
        return []
    below, above = [r for r in runs if _l0(r) < l0], [r for r in runs if _l0(r) > l0]
    if below and above:
        a, b = below[-1], above[0]
        wanted = float(np.sqrt(a.cell.level * b.cell.level)) if _l0(b) / _l0(a) > APART else None
    else:
        wanted = _beyond(runs, l0, up=bool(below))
    if wanted is None:
        return []
    whole = takes_k(runs[0].cell.rule)
    level = float(np.clip(round(wanted), 1, runs[0].cell.n_latents)) if whole else float(f"{wanted:.4g}")
    return [] if level in {r.cell.level for r in runs} else [level]


def _beyond(runs: Sequence[Drawn], l0: float, up: bool) -> float:
    """The level that should lie just beyond an L0 which all runs are on one side of: of k in proportion, of a weight
    by how log L0 goes with its logarithm between the two outer runs."""
    last, *others = reversed(runs) if up else runs
    level, factor = last.cell.level, l0 / _l0(last) * (STRETCH if up else 1 / STRETCH)
    if takes_k(last.cell.rule):
        return max(level + 1, np.ceil(level * factor)) if up else min(level - 1, np.floor(level * factor))
    slope = np.log(_l0(others[0]) / _l0(last)) / np.log(others[0].cell.level / level) if others else 0.0
    return level * float(np.clip(factor ** (1 / slope if slope < 0 else -1.0), 1 / AT_MOST, AT_MOST))


def chosen(runs: Sequence[Drawn], l0: float) -> tuple[int, ...] | NotMeasured:
    """The run within 2% of an L0, or the two on both sides of it with L0s at most a factor of two apart.

    By the measured L0. NotMeasured where there are none: a figure is never drawn on beyond the runs.
    """
    order = sorted((i for i, r in enumerate(runs) if _l0(r) > 0), key=lambda i: _l0(runs[i]))
    if not order:
        return NotMeasured(not_measured="no run ended with a latent on" if runs else "no run ended")
    nearest = min(order, key=lambda i: abs(_l0(runs[i]) / l0 - 1))
    if _is_near(runs[nearest], l0):
        return (nearest,)
    below, above = [i for i in order if _l0(runs[i]) < l0], [i for i in order if _l0(runs[i]) > l0]
    do = "ask for another --l0, or give runs more --places"
    if not (below and above):
        reached = " to ".join(dict.fromkeys(f"{_l0(runs[i]):.1f}" for i in (order[0], order[-1])))
        return NotMeasured(not_measured=f"its runs have an L0 of {reached} and none lies beyond {l0:g}: {do}")
    a, b = below[-1], above[0]
    if _l0(runs[b]) / _l0(runs[a]) > APART:
        found = f"{_l0(runs[a]):.1f} and {_l0(runs[b]):.1f}"
        return NotMeasured(
            not_measured=f"its runs nearest to an L0 of {l0:g} have {found}, over a factor of {APART:g} apart: {do}"
        )
    return a, b


def read_off(runs: Sequence[Drawn], l0: float, what: str) -> Reading | NotMeasured:
    """The figure of one arm and seed at an L0: of the one run that is `chosen`, or on the chord between the two,
    linear in log L0, by the L0 that each has in every resample anew."""
    found = chosen(runs, l0)
    if isinstance(found, NotMeasured):
        return found
    if len(found) == 1:
        return Reading(runs[found[0]].values[what], found)
    a, b = (runs[i] for i in found)
    low, high = np.log(a.l0), np.log(b.l0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.log(l0) - low) / (high - low)
    return Reading((1 - share) * a.values[what] + share * b.values[what], found)


def _l0(run: Drawn) -> float:
    return float(run.l0[0])


def _is_near(run: Drawn, l0: float) -> bool:
    return abs(_l0(run) / l0 - 1) <= NEAR


def cell(rule: str, level: float, n_latents: int, seed: int) -> Cell:
    """A run as grids name it, at the recipe's own learning rate."""
    return Cell(rule, level, n_latents, 1.0, seed)
