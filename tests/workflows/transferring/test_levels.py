"""Figures at one measured L0, and the runs they need."""

import numpy as np
import pytest

from understudy.core.records.metric import NotMeasured
from understudy.workflows._grid.draws import Drawn
from understudy.workflows._transferring.levels import Reading, cell, chosen, first_levels, more_levels, read_off


def run(l0: float, value: float = 0.0, level: float = 8.0, rule: str = "topk") -> Drawn:
    return Drawn(cell(rule, level, 256, 0), np.full(3, l0), {"defect": np.full(3, value)})


def test_a_run_at_the_l0_is_taken_as_it_is():
    assert read_off([run(4, 0.9), run(8.1, 0.3), run(16, 0.1)], 8, "defect").draws.tolist() == [0.3] * 3


def test_between_runs_it_is_linear_in_the_logarithm_of_l0_and_may_be_below_0():
    read = read_off([run(8 * 1.3, -0.1), run(8 / 1.3, 0.3)], 8, "defect")
    assert isinstance(read, Reading)
    assert read.draws == pytest.approx(0.1)
    assert read.runs == (1, 0)


def test_the_l0_of_each_draw_counts():
    a, b = run(6, 0.0), run(12, 1.0)
    a, b = (Drawn(r.cell, l0, r.values) for r, l0 in ((a, np.array([6.0, 4, 4])), (b, np.array([9.0, 8, 32]))))
    assert read_off([a, b], 8, "defect").draws == pytest.approx([np.log(8 / 6) / np.log(9 / 6), 1.0, 1 / 3])


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "no run ended"),
        ([run(0.0)], "with a latent on"),
        ([run(4)], "L0 of 4.0 and none lies beyond 8: ask"),
        ([run(2), run(6)], "L0 of 2.0 to 6.0 and none lies beyond 8: ask"),
        ([run(10), run(20)], "L0 of 10.0 to 20.0"),
        ([run(7.3), run(7.4)], "L0 of 7.3 to 7.4"),
        ([run(3.5), run(18.3)], "3.5 and 18.3, over a factor of 2 apart: ask for another --l0"),
        ([run(2), run(3.5), run(18.3), run(30)], "3.5 and 18.3"),
    ],
)
def test_beyond_the_runs_and_between_those_far_apart_nothing_is_made_up(runs, says):
    read = read_off(runs, 8, "defect")
    assert isinstance(read, NotMeasured)
    assert says in read.not_measured


def test_the_nearest_runs_on_both_sides_count():
    runs = [run(2, 9.0), run(12, 0.5), run(7, 0.3), run(30, 9.0)]
    assert chosen(runs, 8) == (2, 1)
    assert chosen([*runs, run(8.1)], 8) == (4,)


def test_a_run_with_nothing_on_does_not_end_the_search():
    runs = [run(0.0, level=4.0, rule="relu"), run(3, level=2.0, rule="relu"), run(5, level=1.0, rule="relu")]
    assert min(more_levels(runs, 8)) < 1.0


def test_a_rule_that_takes_k_starts_there_and_others_at_three_weights():
    assert first_levels("topk", 256, 64, 8) == [8]
    assert first_levels("jumprelu", 256, 64, 8) == [8]
    weights = first_levels("relu", 256, 64, 8)
    assert len(weights) == 3
    assert weights == sorted(weights)


def test_levels_are_added_on_the_side_that_is_missing():
    assert more_levels([run(8.1)], 8) == []
    assert more_levels([run(7.5), run(9)], 8) == []
    assert more_levels([run(4, level=4), run(16, level=16)], 8) == [8]
    assert more_levels([run(6, level=8), run(16, level=9)], 8) == []  # no k between them
    assert more_levels([run(7.5, level=8), run(7.0, level=7)], 8) == [10]  # a tenth beyond is not enough
    assert more_levels([run(9, level=1)], 8) == []
    assert more_levels([run(6.0)], 8) == [12]  # 8 x 8 / 6 x 1.1, up
    assert more_levels([run(10.0)], 8) == [5]
    dense = [run(30, level=0.1, rule="relu"), run(20, level=0.2, rule="relu")]
    assert min(more_levels(dense, 8)) > 0.2
    assert more_levels([], 8) == []
    apart = [run(2, level=0.4, rule="relu"), run(32, level=0.1, rule="relu")]
    assert more_levels(apart, 8) == [0.2]
    near = [run(6, level=0.4, rule="relu"), run(11, level=0.1, rule="relu")]
    assert more_levels(near, 8) == []
