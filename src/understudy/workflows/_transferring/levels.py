"""Which runs an arm needs so that its figure can be read off at one measured L0, and the reading off."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from understudy.core.records.metric import NotMeasured
from understudy.workflows._grid.cells import Cell, start_l1, takes_k
from understudy.workflows._grid.draws import REACH, Drawn, Draws
from understudy.workflows._grid.levels import missing_levels

NEAR = 0.02
"""A run whose measured L0 is within this share of the wanted one is taken as it is."""
L1_LEVELS = (1.0, 2.0, 4.0)
"""Weights of a penalty that are tried first, over the rule's own: at narrow sites its own leaves many latents on."""
STRETCH = 1.1
"""How far a level for a missed L0 reaches beyond what proportion asks for, so that the two runs lie on both sides."""
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
    """Levels to add; none where the L0 is reached, or lies between two runs."""
    if not runs or any(_is_near(r, l0) for r in runs):
        return []
    if takes_k(runs[0].cell.rule) and len(runs) == 1:
        (run,) = runs
        level, wanted = run.cell.level, run.cell.level * l0 / max(float(run.l0[0]), 1e-9)
        up = wanted > level
        beyond = max(level + 1, np.ceil(wanted * STRETCH)) if up else min(level - 1, np.floor(wanted / STRETCH))
        return [float(np.clip(beyond, 1, run.cell.n_latents))] if beyond >= 1 else []
    return missing_levels([r for r in runs if float(r.l0[0]) > 0], [l0]) or _between(runs, l0)


def _between(runs: Sequence[Drawn], l0: float) -> list[float]:
    """The weight halfway, in logarithms, between the runs on both sides of the L0 where these lie too far apart."""
    below = [r for r in runs if 0 < float(r.l0[0]) <= l0]
    above = [r for r in runs if float(r.l0[0]) > l0]
    if not (below and above) or takes_k(runs[0].cell.rule):
        return []
    a, b = max(below, key=lambda r: float(r.l0[0])), min(above, key=lambda r: float(r.l0[0]))
    far = float(b.l0[0]) / float(a.l0[0]) > APART
    return [float(f"{np.sqrt(a.cell.level * b.cell.level):.4g}")] if far else []


def read_off(runs: Sequence[Drawn], l0: float, what: str) -> Reading | NotMeasured:
    """The figure of one arm and seed at an L0: of the run that has it within 2%, else on the chord, linear in log L0,
    between the runs on both sides, by their measured L0, in every resample anew. Up to a tenth beyond the sparsest or
    the densest run it is that run's; NotMeasured further out."""
    order = sorted((i for i, r in enumerate(runs) if float(r.l0[0]) > 0), key=lambda i: float(runs[i].l0[0]))
    if not order:
        return NotMeasured(not_measured="no run has a latent on")
    nearest = min(order, key=lambda i: abs(float(runs[i].l0[0]) / l0 - 1))
    if _is_near(runs[nearest], l0):
        return Reading(runs[nearest].values[what], (nearest,))
    lowest, highest = (float(runs[i].l0[0]) for i in (order[0], order[-1]))
    if len(order) < 2 or not lowest / (1 + REACH) <= l0 <= highest * (1 + REACH):
        return NotMeasured(not_measured=f"its runs have an L0 of {lowest:.1f} to {highest:.1f}")
    if not lowest <= l0 <= highest:
        return Reading(runs[nearest].values[what], (nearest,))
    at = int(np.clip(np.searchsorted([float(runs[i].l0[0]) for i in order], l0), 1, len(order) - 1))
    a, b = order[at - 1], order[at]
    low, high = np.log(runs[a].l0), np.log(runs[b].l0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.log(l0) - low) / (high - low)
    return Reading((1 - share) * runs[a].values[what] + share * runs[b].values[what], (a, b))


def _is_near(run: Drawn, l0: float) -> bool:
    return abs(float(run.l0[0]) / l0 - 1) <= NEAR


def cell(rule: str, level: float, n_latents: int, seed: int) -> Cell:
    """A run as grids name it, at the recipe's own learning rate."""
    return Cell(rule, level, n_latents, 1.0, seed)
