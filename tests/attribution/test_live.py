"""What live agreement says of edges that are wrong in known ways."""

import numpy as np
import pytest

from understudy.attribution.certify import _figures
from understudy.core.records.metric import NotMeasured


def test_one_factor_for_all_edges_is_told_from_wrong_edges():
    rng = np.random.default_rng(0)
    measured = [rng.normal(size=20) * (100 if i == 0 else 1) for i in range(12)]
    half = _figures([np.stack([2 * m, m], 1) for m in measured], 0)
    assert half.slope.value == pytest.approx(0.5)
    assert half.r2.value == pytest.approx(0)
    assert half.r2_scaled.value == pytest.approx(1)
    wrong = [
        np.stack([rng.normal(size=20) * (100 if i == 0 else 0) + m * (i > 0), m], 1) for i, m in enumerate(measured)
    ]
    one = _figures(wrong, 0)
    assert one.r2.value < 0.1, "the large one decides"
    assert one.r2_median.value == pytest.approx(1)
    assert one.r2_scaled.value < 0.5


def test_latents_that_change_nothing_have_no_r2_of_their_own():
    silent, right = np.zeros((3, 2)), np.ones((3, 2))
    seen = _figures([silent, *[right] * 7], 0)
    assert seen.r2_median.value == 1
    assert (seen.r2_median.n, seen.r2.n) == (7, 8), "a median over those that have one; once it said 8"
    none = _figures([silent, silent, right], 0).r2_median
    assert isinstance(none, NotMeasured)
    assert "1 of 3 removed latents changed anything" in none.not_measured
