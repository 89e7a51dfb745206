"""From the runs of a trial to its row: every arm at one L0, the share of the defect that is gone, the control."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from understudy.core.names import short_name
from understudy.core.records.metric import NotMeasured
from understudy.core.records.transfer import ArmFigure, Row
from understudy.workflows._grid.draws import Drawn, Draws, figure, mean_over_seeds
from understudy.workflows._transferring.claim import Arm
from understudy.workflows._transferring.levels import chosen, read_off
from understudy.workflows._transferring.trial import Trial, Try
from understudy.workflows.evaluate import described

Found = Draws | NotMeasured


class Read(NamedTuple):
    """One arm of one seed at the L0."""

    tries: tuple[Try, ...]
    """The runs it is read off from."""
    defect: Found
    control: Found


def judged_row(trial: Trial, tries: Sequence[Try]) -> Row:
    """What the runs say about the claim."""
    claim, network, b = trial.claim, trial.plain.network, trial.bootstrap
    read = [read_seed(trial, tries, seed) for seed in trial.seeds]
    has, said = ([by_arm[arm].defect for by_arm in read] for arm in claim.arms[:2])
    by_seed = [_share(a, b) for a, b in zip(has, said, strict=True)]
    counted = [{arm.name: [trial.tally(t) for t in r.tries] for arm, r in by_arm.items()} for by_arm in read]
    return Row(
        network=network.name, site=short_name(network, trial.plain.site), claim=claim.name,
        data=described(network, trial.base.data), width=network.width(trial.plain.site),
        n_latents=trial.base.n_latents, sequences=len(trial.judging.judged), units=b.n_units,
        arms=[_arm(trial, arm, [by_arm[arm] for by_arm in read]) for arm in claim.arms], least=claim.least,
        removed=figure(_share(mean_over_seeds(has), mean_over_seeds([_sizes(x) for x in said])), "fraction", b),
        removed_by_seed=[float(x[0]) for x in by_seed if not isinstance(x, NotMeasured) and np.isfinite(x[0])],
        notes=[*claim.notes(counted), *(f"stopped: {line}" for line in trial.stopped(tries))],
    )  # fmt: skip


def read_seed(trial: Trial, tries: Sequence[Try], seed: int) -> dict[Arm, Read]:
    """Every arm of a seed. Only the runs that arms are read off from are judged together: one that the search for the
    L0 left aside has no say in what is counted."""
    runs = {t: trial.reached(t) for t in trial.ended(tries) if t.seed == seed}
    picked: dict[Arm, tuple[Try, ...] | NotMeasured] = {}
    for arm in trial.claim.arms:
        own = [t for t in runs if t.arm == arm]
        which = chosen([runs[t] for t in own], trial.l0)
        picked[arm] = which if isinstance(which, NotMeasured) else tuple(own[i] for i in which)
    used = [t for which in picked.values() if not isinstance(which, NotMeasured) for t in which]
    tallies = [trial.tally(t) for t in used]
    out = {arm: Read((), which, which) for arm, which in picked.items() if isinstance(which, NotMeasured)}
    if not used:
        return out
    defects, controls = (of(tallies, trial.bootstrap) for of in (trial.claim.defects, trial.claim.controls))
    for arm, which in picked.items():
        if not isinstance(which, NotMeasured):
            own = [(runs[t], used.index(t)) for t in which]
            out[arm] = Read(which, _at_l0(own, trial.l0, defects), _at_l0(own, trial.l0, controls))
    return out


def _at_l0(runs: Sequence[tuple[Drawn, int]], l0: float, values: Sequence[Draws] | NotMeasured) -> Found:
    """What an arm's runs, each with its place among `values`, give at an L0."""
    if isinstance(values, NotMeasured):
        return values
    read = read_off([Drawn(run.cell, run.l0, {"value": values[i]}) for run, i in runs], l0, "value")
    return read if isinstance(read, NotMeasured) else read.draws


def _arm(trial: Trial, arm: Arm, read: Sequence[Read]) -> ArmFigure:
    """Means over seeds."""
    defect, control = (
        figure(mean_over_seeds(found), trial.claim.unit, trial.bootstrap)
        for found in ([r.defect for r in read], [r.control for r in read])
    )
    used = [t for r in read for t in r.tries]
    values = [r.defect[0] for r in read if not isinstance(r.defect, NotMeasured)]
    return ArmFigure(
        arm=arm.name, runs=[t.name for t in used], l0=[float(trial.reached(t).l0[0]) for t in used],
        defect=defect, control=control,
        by_seed=[float(x) for x in values if np.isfinite(x)],
    )  # fmt: skip


def _sizes(found: Found) -> Found:
    """What is left in each draw, whatever its sign: seeds that err to both sides do not cancel."""
    return found if isinstance(found, NotMeasured) else np.abs(found)


def _share(has: Found, said: Found) -> Found:
    """1 - |what is left| / what there was, in each draw."""
    for found in (has, said):
        if isinstance(found, NotMeasured):
            return found
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(has > 0, 1 - np.abs(said) / has, np.nan)  # pyright: ignore
