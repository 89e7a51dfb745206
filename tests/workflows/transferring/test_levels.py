"""Figures at one measured L0, and the runs they need."""

import numpy as np
import pytest

from understudy.core.records.metric import NotMeasured
from understudy.workflows._grid.draws import Drawn
from understudy.workflows._transferring.levels import Reading, cell, first_levels, more_levels, read_off


def run(l0: float, value: float = 0.0, level: float = 8.0, rule: str = "topk") -> Drawn:
    return Drawn(cell(rule, level, 256, 0), np.full(3, l0), {"defect": np.full(3, value)})


def test_a_run_at_the_l0_is_taken_as_it_is():
    assert read_off([run(4, 0.9), run(8.1, 0.3), run(16, 0.1)], 8, "defect").draws.tolist() == [0.3] * 3


def test_between_runs_it_is_linear_in_the_logarithm_of_l0_and_may_be_below_0():
    read = read_off([run(16, -0.1), run(4, 0.3)], 8, "defect")
    assert isinstance(read, Reading)
    assert read.draws == pytest.approx(0.1)
    assert read.runs == (1, 0)


def test_the_l0_of_each_draw_counts():
    a, b = run(4, 0.0), run(16, 1.0)
    b = Drawn(b.cell, np.array([16.0, 8.0, 32.0]), b.values)
    assert read_off([a, b], 8, "defect").draws == pytest.approx([0.5, 1.0, 1 / 3])


@pytest.mark.parametrize("runs", [[], [run(4)], [run(2), run(6)], [run(10), run(20)], [run(0.0)]])
def test_beyond_the_runs_nothing_is_made_up(runs):
    assert isinstance(read_off(runs, 8, "defect"), NotMeasured)


def test_just_beyond_the_runs_the_outer_one_is_taken_and_no_line_is_drawn_on():
    close = [run(7.3, 0.20), run(7.35, 0.21)]
    assert read_off(close, 8, "defect").draws.tolist() == [0.21] * 3


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
    assert more_levels([run(4), run(16)], 8) == []
    assert more_levels([run(6.0)], 8) == [12]  # 8 x 8 / 6 x 1.1, up
    assert more_levels([run(10.0)], 8) == [5]
    dense = [run(30, level=0.1, rule="relu"), run(20, level=0.2, rule="relu")]
    assert min(more_levels(dense, 8)) > 0.2
    assert more_levels([], 8) == []
    apart = [run(2, level=0.4, rule="relu"), run(32, level=0.1, rule="relu")]
    assert more_levels(apart, 8) == [0.2]
    near = [run(6, level=0.4, rule="relu"), run(11, level=0.1, rule="relu")]
    assert more_levels(near, 8) == []
