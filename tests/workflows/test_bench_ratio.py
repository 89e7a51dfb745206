import math
import random

import pytest

from understudy.core.bootstrap import student_t
from understudy.workflows._benching.ratio import Ratio, in_turns


@pytest.mark.parametrize(("freedom", "known"), [(3, 3.1824), (4, 2.7764), (7, 2.3646), (30, 2.0423)])
def test_students_t_is_that_of_the_tables(freedom, known):
    assert known * 0.99 < student_t(freedom) <= known * 1.001


def test_a_known_interval():
    """Logarithms 0.0, 0.1, 0.2, 0.3: mean 0.15, standard error 0.0645, t(3) = 3.18."""
    found = Ratio.of([math.exp(x) for x in (0.0, 0.1, 0.2, 0.3)], [1.0] * 4)
    assert found.value == pytest.approx(math.exp(0.15))
    assert math.log(found.interval[1]) - 0.15 == pytest.approx(3.18 * 0.0645, rel=0.01)
    assert math.log(found.interval[0]) == pytest.approx(0.3 - math.log(found.interval[1]))


def test_what_slows_both_down_cancels():
    slow = [1.0, 3.0, 0.5, 2.0]
    found = Ratio.of([2 * s for s in slow], slow)
    assert found.value == pytest.approx(2)
    assert found.within(1e-6)


def test_intervals_hold_what_they_say():
    """Of two steps with 10% noise, 1.5 and 3 floors, measured apart: 95% of 2,000 intervals hold the true ratio."""
    draw = random.Random(0)

    def timed(true, n):
        return Ratio.of([true * math.exp(draw.gauss(0, 0.1)) for _ in range(n)], [1.0] * n)

    held = [low <= 2 <= high for low, high in (timed(3, 5).over(timed(1.5, 9)).interval for _ in range(2000))]
    assert sum(held) / 2000 == pytest.approx(0.95, abs=0.015)
    alone = [low <= 3 <= high for low, high in (timed(3, 5).interval for _ in range(2000))]
    assert sum(alone) / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("floors", "steps"), [(0.1, 0.0), (0.1, 0.03), (0.05, 0.05), (0.0, 0.1)])
def test_intervals_hold_where_floors_are_noisy_and_turns_are_taken_until_they_are_narrow(floors, steps):
    draw = random.Random(0)

    def timed():
        found = in_turns(lambda: math.exp(draw.gauss(0, floors)), lambda: 2 * math.exp(draw.gauss(0, steps)), 7, 200.0)
        low, high = found.ratio.interval
        return low <= 2 <= high

    assert sum(timed() for _ in range(1000)) / 1000 > 0.92


def test_turns_are_taken_until_the_interval_is_narrow():
    draw = random.Random(1)
    found = in_turns(lambda: 1.0, lambda: 2 * math.exp(draw.gauss(0, 0.1)), 4, 1e9)
    assert found.ratio.within(0.05)
    assert 8 < len(found.step) < 60
    assert not Ratio.of(found.step[:-1], found.floor[:-1]).within(0.05)
    assert len(in_turns(lambda: 1.0, lambda: 2.0, 4, 1e9).step) == 4
    assert len(in_turns(lambda: 1.0, lambda: draw.random() + 1, 4, 0.0).step) == 4


def test_a_turn_lies_between_two_floors():
    floors = iter([1.0, 4.0, 9.0, 1.0, 1.0, 1.0, 4.0, 9.0])
    found = in_turns(lambda: next(floors), lambda: 6.0, 4, 0.0)
    assert found.floor == pytest.approx([2.0, 3.0, 1.0, 6.0])
