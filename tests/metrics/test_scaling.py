"""Laws of a grid: planted laws come back exactly, what bends them shows, and a grid that is too small is refused."""

import numpy as np
import pytest

from understudy.core.records.errors import WrongShape
from understudy.metrics import best_rate, joint_law, rate_law

K, N = (a.ravel() for a in np.meshgrid([8.0, 16.0, 32.0], [128.0, 256.0, 512.0]))
A, B_K, B_N, G = -0.7, -0.4, -0.15, -0.03


def planted(k, n):
    x, y = np.log(k / 16), np.log(n / 256)
    return np.exp(A + B_K * x + B_N * y + G * x * y)


def test_a_planted_law_comes_back_and_predicts_beyond_the_grid():
    law = joint_law(np.stack([planted(K, N)] * 3), K, N)
    assert law.middle == pytest.approx((16, 256))
    assert np.allclose(law.coefficients, [[A, B_K, B_N, G]] * 3)
    assert np.allclose(law.left_out, 0)
    ahead = law.predict(np.array([8.0, 64.0]), np.array([1024.0, 2048.0]))
    assert np.allclose(ahead, planted(np.array([8.0, 64.0]), np.array([1024.0, 2048.0])))


def test_every_draw_has_its_own_fit():
    losses = np.stack([planted(K, N), 2 * planted(K, N)])
    law = joint_law(losses, K, N)
    assert np.allclose(law.coefficients[1] - law.coefficients[0], [np.log(2), 0, 0, 0])


def test_left_out_is_what_a_fit_without_that_run_says():
    losses = planted(K, N) * np.exp(0.05 * np.random.default_rng(0).standard_normal((4, 9)))
    law = joint_law(losses, K, N)
    for i in range(9):
        rest = np.arange(9) != i
        without = joint_law(losses[:, rest], K[rest], N[rest])
        assert np.allclose(without.predict(K[i : i + 1], N[i : i + 1])[:, 0] / losses[:, i] - 1, law.left_out[:, i])


def test_the_units_of_the_loss_change_nothing_but_its_level():
    losses = planted(K, N) * np.exp(0.05 * np.random.default_rng(0).standard_normal((4, 9)))
    one, other = joint_law(losses, K, N), joint_law(1000 * losses, K, N)
    assert np.allclose(one.coefficients[:, 1:], other.coefficients[:, 1:])
    assert np.allclose(one.left_out, other.left_out)


def test_a_loss_that_stops_falling_is_missed_beyond_the_grid():
    """An irreducible term that the law has not: the prediction lies below the truth by about as much as is said."""
    floor = 0.3
    law = joint_law(planted(K, N)[None] + floor, K, N)
    far = np.array([16.0]), np.array([256.0 * 64])
    assert law.predict(*far)[0, 0] < planted(*far)[0] + floor
    assert np.abs(law.left_out).max() > 1e-4


@pytest.mark.parametrize(
    ("k", "n"), [(K[:4], N[:4]), (K, np.full(9, 256.0)), (np.full(9, 8.0), N)], ids=["few", "one n", "one k"]
)
def test_a_grid_that_does_not_determine_the_law_is_refused(k, n):
    with pytest.raises(WrongShape, match=r"do not determine|one k and one n"):
        joint_law(np.ones((2, len(k))), k, n)


def test_the_best_rate_is_the_lowest_point_of_a_parabola_in_the_logarithm():
    rates = np.array([4e-3, 1e-3, 2e-3, 8e-3])  # in any order
    for true in (1.7e-3, 2.4e-3, 4.1e-3):
        losses = 0.3 + 0.02 * (np.log(rates) - np.log(true)) ** 2
        assert np.allclose(best_rate(np.stack([losses, 5 * losses]), rates), true)


@pytest.mark.parametrize("true", [1e-4, 1e-1])
def test_a_best_rate_at_the_edge_of_those_tried_is_none(true):
    rates = np.array([1e-3, 2e-3, 4e-3])
    assert best_rate((np.log(rates) - np.log(true))[None] ** 2, rates) is None


def test_a_draw_without_a_lowest_point_is_nan_not_a_number_that_looks_like_one():
    rates = np.array([1e-3, 2e-3, 4e-3])
    found = best_rate(np.array([[1.0, 0.5, 1.0], [0.5, 0.6, 0.5]]), rates)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_the_published_exponent_comes_back():
    n = np.array([256.0, 512.0, 1024.0])
    law = rate_law((8e-3 * (1024 / n) ** 0.5)[None], n)
    assert law.slope == pytest.approx([-0.5])
    assert law.predict(4096) == pytest.approx([4e-3])
    with pytest.raises(WrongShape, match="2 widths"):
        rate_law(np.ones((1, 1)), np.array([256.0]))
