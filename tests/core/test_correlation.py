import numpy as np
import pytest
from scipy.stats import spearmanr

from understudy.core.correlation import spearman


@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_scipy(ties):
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(200, 2))
    pairs[:, 1] += 0.7 * pairs[:, 0]
    pairs = pairs.round(0) if ties else pairs
    assert spearman(pairs) == pytest.approx(spearmanr(*pairs.T).statistic)


def test_on_four_numbers():
    assert spearman(np.array([[1, 10], [2, 20], [3, 5], [4, 40]])) == pytest.approx(1 - 6 * (1 + 1 + 4 + 0) / (4 * 15))
    assert spearman(np.array([[1, 5.0], [2, 5.0], [3, 5.0]])) == 0, "nothing to rank"
