"""Which runs of a seed are judged together: those that arms are read off from, and no others."""

from types import SimpleNamespace

import numpy as np
import pytest

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.metric import NotMeasured
from understudy.metrics.absorption import COUNTS
from understudy.workflows._grid.draws import Drawn
from understudy.workflows._transferring.claims import NestedRemovesAbsorption
from understudy.workflows._transferring.judging import read_seed
from understudy.workflows._transferring.levels import cell
from understudy.workflows._transferring.planting import LOOSE, NESTED
from understudy.workflows._transferring.trial import Try

CLAIM = NestedRemovesAbsorption()
PLAIN, NESTED_ARM = CLAIM.arms
N = 6


def tally(share: float, found: float = 0.9) -> dict[str, np.ndarray]:
    """A share of places with a child absorbs; every family alike."""
    counts = dict.fromkeys(COUNTS, 0.0) | {"child": 100.0, "alone": 50.0, "absorbed": 100 * share}
    return {k: np.full((N, NESTED + LOOSE), v) for k, v in counts.items()} | {"f1": np.full(NESTED + LOOSE, found)}


def trial(runs: dict[Try, tuple[float, dict[str, np.ndarray]]]) -> SimpleNamespace:
    """Runs that ended, with their L0 and counts."""
    bootstrap = Bootstrap(N)
    return SimpleNamespace(
        claim=CLAIM, l0=8.0, bootstrap=bootstrap, ended=lambda tries: [t for t in tries if t in runs],
        reached=lambda t: Drawn(cell("topk", t.level, 64, t.seed), np.full(bootstrap.n_resamples + 1, runs[t][0]), {}),
        tally=lambda t: runs[t][1],
    )  # fmt: skip


def test_a_run_that_is_left_aside_takes_no_parent_from_the_others():
    a, b, far = Try(PLAIN, 8, 0), Try(NESTED_ARM, 8, 0), Try(NESTED_ARM, 2, 0)
    runs = {a: (8.0, tally(0.5)), b: (8.1, tally(0.1)), far: (2.0, tally(0.0, found=0.1))}
    read = read_seed(trial(runs), list(runs), 0)
    assert read[PLAIN].tries == (a,)
    assert read[NESTED_ARM].tries == (b,)
    assert read[PLAIN].defect[0] == pytest.approx(0.5)
    assert read[NESTED_ARM].defect[0] == pytest.approx(0.1)


def test_parents_that_an_arm_lacks_where_it_is_read_off_are_counted_in_none():
    a, b = Try(PLAIN, 8, 0), Try(NESTED_ARM, 8, 0)
    some = tally(0.1)
    some["f1"][:2], lost = 0.1, tally(0.5)
    lost["absorbed"][:, :2] = 0.0  # what two parents say that the other arm lacks
    read = read_seed(trial({a: (8.0, lost), b: (8.0, some)}), [a, b], 0)
    assert read[PLAIN].defect[0] == pytest.approx(0.5)
    (note,) = CLAIM.notes([{"plain": [lost], "nested": [some]}])
    assert note.endswith("5 in plain, 3 in nested; 3 in every arm are counted")


def test_without_a_run_that_ended_every_arm_says_so_and_others_are_read():
    a, b = Try(PLAIN, 8, 0), Try(NESTED_ARM, 8, 0)
    none = read_seed(trial({}), [a, b], 0)
    assert [none[arm].defect for arm in CLAIM.arms] == [NotMeasured(not_measured="no run ended")] * 2
    one = read_seed(trial({a: (8.0, tally(0.5))}), [a, b], 0)
    assert one[PLAIN].defect[0] == pytest.approx(0.5)
    assert one[NESTED_ARM].defect == NotMeasured(not_measured="no run ended")
