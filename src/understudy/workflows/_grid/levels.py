"""Which runs a grid needs: a learning rate for each rule, and levels where an L0 has not been reached."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from understudy.core.records.errors import NonFiniteLoss
from understudy.core.records.frontier import Rate
from understudy.workflows._grid.cells import Cell, takes_k
from understudy.workflows._grid.draws import REACH, Drawn

if TYPE_CHECKING:
    from understudy.workflows._grid.stage import Stage

AT_ONCE = 3
"""Levels added at a time."""


def choose_rate(stage: "Stage", cells: Sequence[Cell]) -> Rate:
    """The factor whose cell ends at the lowest loss of its own, penalties included: at another rate a penalised rule
    has another L0, and its errors alone would not compare. Raises NonFiniteLoss if no cell ended."""
    losses = {cell.lr_factor: stage.selection_loss(cell) for cell in cells}
    known = {factor: loss for factor, loss in losses.items() if loss is not None}
    if not known:
        raise NonFiniteLoss(f"{cells[0].rule} diverged at every learning rate tried. Give lower --lr-factors.")
    best = min(known, key=lambda factor: known[factor])
    is_edge = len(losses) > 1 and best in (min(losses), max(losses))
    return Rate(rule=cells[0].rule, losses={f"{f:g}": v for f, v in losses.items()}, factor=best, is_edge=is_edge)


def missing_levels(runs: Sequence[Drawn], l0s: Sequence[float]) -> list[float]:
    """Levels to add so that a rule's runs reach from the lowest to the highest L0: steps of two beyond the outermost
    run, as many as the slope between the two outer runs asks for, three at most."""
    runs = sorted(runs, key=lambda r: r.l0[0])
    if len(runs) < 2 or not runs[0].l0[0] > 0:
        return []
    whole, most = takes_k(runs[0].cell.rule), runs[0].cell.n_latents
    out = []
    for first, last, wanted in ((runs[1], runs[0], min(l0s)), (runs[-2], runs[-1], max(l0s))):
        reached, beyond = math.log(last.l0[0]), math.log(wanted)
        if abs(beyond - reached) <= math.log(1 + REACH) or (beyond < reached) is (last is runs[-1]):
            continue
        step = 2.0 if (last is runs[-1]) is whole else 0.5
        slope = abs(math.log(last.l0[0] / first.l0[0]) / math.log(last.cell.level / first.cell.level)) or 1.0
        steps = min(AT_ONCE, max(1, math.ceil(abs(beyond - reached) / slope / math.log(2))))
        levels = [last.cell.level * step**i for i in range(1, steps + 1)]
        out += [float(max(1, min(most, round(level)))) for level in levels] if whole else levels
    return [level for level in dict.fromkeys(out) if level not in {r.cell.level for r in runs}]
