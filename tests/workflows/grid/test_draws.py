"""Rules at equal L0: known answers on planted power laws, and nothing where no run reaches."""

import numpy as np
import pytest

from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, Reconstruction
from understudy.workflows._grid.cells import Cell
from understudy.workflows._grid.draws import Drawn, at_l0, chord_error, drawn
from understudy.workflows._grid.equal import at_equal_l0, points, worst_chord
from understudy.workflows._grid.levels import missing_levels
from understudy.workflows._grid.measure import Sums

N = 40
BOOTSTRAP = Bootstrap(N, 3, 200)


def sums(l0: float, fvu: float, extra: float | None = None, noise: int = 0) -> Sums:
    """Sequences of 10 places with unit variance: every one has this L0 and FVU, up to noise that is shared by seed."""
    wobble = 1 + 0.2 * np.random.default_rng(noise).standard_normal(N) if noise else np.ones(N)
    r = Reconstruction("x", N, np.zeros(2))
    r.n, r.squares, r.errors, r.moved = np.full(N, 10.0), np.full(N, 10.0), 10 * fvu * wobble, np.zeros((N, 2))
    clean = np.full(N, 20.0)
    losses = () if extra is None else (clean + 10 * extra * wobble, clean, np.full(N, 10.0))
    return Sums(r, np.full(N, 10 * l0), np.array([1, 0, 3, 4]), *losses)


def law(rule: str, c: float, levels=(8, 16, 32), seed: int = 0, noise: int = 0) -> list[Drawn]:
    """Runs on fvu = c L0^-0.5, delta loss a tenth of it."""
    cells = [Cell(rule, k, 64, 1.0, seed) for k in levels]
    return [drawn(x, sums(x.level, c * x.level**-0.5, 0.1 * c * x.level**-0.5, noise), BOOTSTRAP) for x in cells]


def forms(*runs: list[Drawn]) -> dict[str, list[Drawn]]:
    return {"thresholds": [r for own in runs for r in own], "trained": []}


@pytest.mark.parametrize("l0", [8, 11.3, 16, 23.7, 32, 34])
def test_a_power_law_is_read_off_exactly_at_any_l0_between_runs(l0):
    for what, share in (("fvu", 1.0), ("delta_loss", 0.1)):
        found = at_l0(law("topk", 2.0), l0, what)
        assert np.allclose(found, share * 2.0 * l0**-0.5)
    assert chord_error(law("topk", 2.0), "fvu") == pytest.approx([0.0])


@pytest.mark.parametrize("l0", [5, 40])
def test_beyond_the_runs_nothing_is_measured_and_their_range_is_said(l0):
    found = at_l0(law("topk", 2.0), l0, "fvu")
    assert isinstance(found, NotMeasured)
    assert "8.0 to 32.0" in found.not_measured


def test_measured_l0_counts_not_the_one_asked_for():
    """Runs that asked for 8, 16, 32 and measured twice that: at 32 stands what the run of level 16 measured."""
    cells = [Cell("jumprelu", k, 64) for k in (8, 16, 32)]
    runs = [drawn(c, sums(2 * c.level, c.level**-0.5), BOOTSTRAP) for c in cells]
    assert at_l0(runs, 32, "fvu")[0] == pytest.approx(16**-0.5)


def test_the_lower_law_is_best_everywhere_and_a_clear_gap_excludes_zero():
    found = at_equal_l0(
        forms(law("topk", 2.0, noise=1), law("relu", 2.4, noise=1)), ["topk", "relu"], [8, 16], BOOTSTRAP
    )
    for row in (r for r in found if r.form == "thresholds"):
        assert row.verdict == ("best" if row.rule == "topk" else "worse")
        if row.rule == "relu" and row.what == "fvu":
            assert row.beyond_best.value == pytest.approx(0.4 * row.l0**-0.5, rel=0.1)
            assert row.beyond_best.low > 0
            assert len(row.by_seed) == 1


def test_a_rule_beside_its_copy_is_not_told_apart():
    """The same figures up to independent noise in every sequence: chance must not name a winner."""
    told = 0
    for trial in range(40):
        a, b = law("topk", 2.0, noise=100 + trial), law("relu", 2.0, noise=500 + trial)
        rows = at_equal_l0(forms(a, b), ["topk", "relu"], [16], BOOTSTRAP)
        told += any(r.verdict == "worse" for r in rows if (r.form, r.what) == ("thresholds", "fvu"))
    assert told <= 8  # best-of-two is chosen on the same data: 5% is expected, 16 in 40 would be no test at all


def test_seeds_that_disagree_leave_it_undecided():
    a = [*law("topk", 2.0, seed=0), *law("topk", 2.0, seed=1)]
    b = [*law("relu", 2.6, seed=0), *law("relu", 1.9, seed=1)]
    rows = at_equal_l0(forms(a, b), ["topk", "relu"], [16], BOOTSTRAP)
    row = next(r for r in rows if r.rule == "relu" and r.what == "fvu")
    assert isinstance(row.beyond_best, Measured)
    assert row.beyond_best.low > 0
    assert row.by_seed == pytest.approx([0.15, -0.025])
    assert row.verdict == "undecided"


def test_a_rule_without_a_form_of_its_own_stands_for_itself():
    both = {"thresholds": [*law("topk", 2.0), *law("relu", 1.8)], "trained": law("topk", 1.9)}
    rows = {(r.form, r.rule): r for r in at_equal_l0(both, ["topk", "relu"], [16], BOOTSTRAP) if r.what == "fvu"}
    assert rows["trained", "relu"].value == rows["thresholds", "relu"].value
    assert rows["trained", "topk"].value.value == pytest.approx(1.9 / 4)


def test_without_loss_only_fvu_is_measured():
    runs = [drawn(Cell("topk", k, 64), sums(k, k**-0.5), BOOTSTRAP) for k in (8, 16)]
    rows = at_equal_l0(forms(runs), ["topk"], [8], BOOTSTRAP)
    assert [isinstance(r.value, Measured) for r in rows if r.form == "thresholds"] == [True, False]
    assert isinstance(points(forms(runs), BOOTSTRAP)[0].delta_loss, NotMeasured)
    assert points(forms(runs), BOOTSTRAP)[0].dead == 0.25


def test_the_worst_chord_is_that_of_the_run_off_the_line():
    bent = law("topk", 2.0)
    bent[1] = drawn(bent[1].cell, sums(16, 0.55), BOOTSTRAP)
    assert worst_chord(forms(bent), ["topk"]).value == pytest.approx(abs(0.5 / 0.55 - 1))


def aimed(rule: str, measured: dict[float, float]) -> list[Drawn]:
    return [drawn(Cell(rule, level, 512), sums(l0, 0.5), BOOTSTRAP) for level, l0 in measured.items()]


@pytest.mark.parametrize(
    ("rule", "measured", "wanted"),
    [
        ("topk", {8: 7.9, 16: 16.1, 32: 31.0}, []),
        ("relu", {0.1: 20.0, 0.2: 10.0}, [0.4, 0.05]),  # halving the weight doubles L0: one step each way
        ("relu", {0.1: 40.0, 0.2: 20.0}, [0.4, 0.8]),
        ("jumprelu", {8: 11.0, 16: 18.0, 32: 33.0}, [4.0]),
        ("relu", {0.1: 0.0, 0.2: 0.0}, []),  # nothing to learn a slope from
    ],
)
def test_levels_are_added_where_an_l0_is_missing(rule, measured, wanted):
    assert missing_levels(aimed(rule, measured), [8, 16, 32]) == pytest.approx(wanted)
