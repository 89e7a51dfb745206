"""From the runs of a trial to its row: every arm at one L0, the share of the defect that is gone, the control."""

from collections.abc import Mapping, Sequence

import numpy as np

from understudy.core.names import short_name
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.transfer import ArmFigure, Row
from understudy.workflows._grid.draws import Drawn, Draws, figure, mean_over_seeds
from understudy.workflows._transferring.claim import Arm
from understudy.workflows._transferring.levels import Reading, read_off
from understudy.workflows._transferring.trial import Trial, Try
from understudy.workflows.evaluate import described

BySeed = Mapping[int, Mapping[Try, Drawn] | NotMeasured]
Found = Draws | NotMeasured


def judged_row(trial: Trial, tries: Sequence[Try]) -> Row:
    """What the runs say about the claim."""
    claim, network, b = trial.claim, trial.plain.network, trial.bootstrap
    drawn = {seed: trial.drawn(tries, seed) for seed in trial.seeds}
    has, said = ([_draws(r) for r in _read(trial, arm, drawn, "defect")] for arm in claim.arms[:2])
    by_seed = [_share(a, b) for a, b in zip(has, said, strict=True)]
    return Row(
        network=network.name, site=short_name(network, trial.plain.site), claim=claim.name,
        data=described(network, trial.base.data), width=network.width(trial.plain.site),
        n_latents=trial.base.n_latents, sequences=len(trial.judging.judged), units=b.n_units,
        arms=[_arm(trial, arm, drawn) for arm in claim.arms], least=claim.least,
        removed=figure(_share(mean_over_seeds(has), mean_over_seeds([_sizes(x) for x in said])), "fraction", b),
        removed_by_seed=[float(x[0]) for x in by_seed if not isinstance(x, NotMeasured) and np.isfinite(x[0])],
        notes=[f"stopped: {line}" for line in trial.stopped(tries)],
    )  # fmt: skip


def _read(trial: Trial, arm: Arm, drawn: BySeed, what: str) -> list[Reading | NotMeasured]:
    """One arm's figure at the L0, by seed."""
    out = []
    for found in drawn.values():
        if isinstance(found, NotMeasured):
            out.append(found)
        else:
            out.append(read_off([run for t, run in found.items() if t.arm == arm], trial.l0, what))
    return out


def _arm(trial: Trial, arm: Arm, drawn: BySeed) -> ArmFigure:
    read = _read(trial, arm, drawn, "defect")
    used: list[tuple[str, float]] = []
    for reading, found in zip(read, drawn.values(), strict=True):
        if isinstance(reading, Reading) and not isinstance(found, NotMeasured):
            own = [(t.name, float(run.l0[0])) for t, run in found.items() if t.arm == arm]
            used += [own[i] for i in reading.runs]

    def mean(readings: Sequence[Reading | NotMeasured]) -> Metric:
        return figure(mean_over_seeds([_draws(r) for r in readings]), trial.claim.unit, trial.bootstrap)

    return ArmFigure(
        arm=arm.name, runs=[name for name, _ in used], l0=[l0 for _, l0 in used],
        defect=mean(read), control=mean(_read(trial, arm, drawn, "control")),
        by_seed=[float(r.draws[0]) for r in read if isinstance(r, Reading) and np.isfinite(r.draws[0])],
    )  # fmt: skip


def _draws(read: Reading | NotMeasured) -> Found:
    return read.draws if isinstance(read, Reading) else read


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
