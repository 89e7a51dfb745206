"""Equivalent compute on ladders whose law is planted."""

import numpy as np
import pytest

from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, equivalent_compute, power_law

FLOPS = 1e12 * 6.0 ** np.arange(5)
N = 60
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(50, 100, N).astype(float)
EACH = np.tile(COUNTS, (5, 1))
NOISE = RNG.normal(1, 0.05, N)
"""How hard each sequence is: shared by all, so that it cancels."""


def law(flops, irreducible=0.0, scale=4.0, exponent=0.1):
    return irreducible + scale * (np.asarray(flops) / 1e12) ** -exponent


def spread(loss):
    """Sums by sequence of a mean loss, harder sequences with more of it."""
    return loss * COUNTS * NOISE / (COUNTS @ NOISE) * COUNTS.sum()


def rungs(**planted):
    return np.stack([spread(x) for x in law(FLOPS, **planted)])


def measured(metric) -> Measured:
    assert isinstance(metric, Measured), metric
    return metric


@pytest.mark.parametrize("compute", [1.7e12, 6e12, 9.9e13, 1.2e15])
def test_a_power_law_is_read_off_exactly(compute):
    figure = measured(equivalent_compute(Bootstrap(N), spread(law(compute)), rungs(), FLOPS, COUNTS))
    assert figure.value == pytest.approx(compute, rel=1e-9)
    assert figure.unit == "FLOPs"
    assert figure.n == N


@pytest.mark.parametrize("irreducible", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("exponent", [0.1, 0.2])
def test_an_irreducible_loss_is_missed_by_little_and_upwards(irreducible, exponent):
    planted = {"irreducible": irreducible, "exponent": exponent, "scale": 2.0}
    for compute in np.geomspace(*FLOPS[[0, -1]], 17)[1:-1]:
        figure = measured(
            equivalent_compute(Bootstrap(N), spread(law(compute, **planted)), rungs(**planted), FLOPS, COUNTS)
        )
        assert compute * (1 - 1e-9) <= figure.value < 1.07 * compute


def test_scale_of_the_loss_changes_nothing():
    """Bits or nats, per byte or per token: the ladder is read in the same units."""
    a = measured(equivalent_compute(Bootstrap(N), spread(law(1e14)), rungs(), FLOPS, COUNTS))
    b = measured(equivalent_compute(Bootstrap(N), spread(law(1e14)) * 7, rungs() * 7, FLOPS, COUNTS))
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))


def test_noise_that_is_shared_cancels_and_noise_that_is_not_widens_the_interval():
    exact = measured(equivalent_compute(Bootstrap(N), spread(law(1e14)), rungs(), FLOPS, COUNTS))
    assert exact.high / exact.low < 1.0001
    own = spread(law(1e14)) * np.random.default_rng(1).normal(1, 0.1, N)
    noisy = measured(equivalent_compute(Bootstrap(N), own, rungs(), FLOPS, COUNTS))
    assert noisy.low < noisy.value < noisy.high
    assert noisy.high / noisy.low > 1.2


def test_the_interval_covers_the_planted_compute():
    """95% intervals hold the truth in about 95 of 100 draws of the text."""
    rng, held = np.random.default_rng(2), 0
    for seed in range(100):
        noise = rng.normal(0, 0.5, (6, N))
        loss, ladder = (law(1e14) + noise[0]) * COUNTS, (law(FLOPS)[:, None] + noise[1:]) * COUNTS
        figure = measured(equivalent_compute(Bootstrap(N, seed, 400), loss, ladder, FLOPS, COUNTS))
        held += figure.low <= 1e14 <= figure.high
    assert 88 <= held <= 99


def test_beyond_the_ends_nothing_is_extrapolated():
    better = equivalent_compute(Bootstrap(N), spread(law(FLOPS[-1]) - 0.1), rungs(), FLOPS, COUNTS)
    worse = equivalent_compute(Bootstrap(N), spread(law(FLOPS[0]) + 0.1), rungs(), FLOPS, COUNTS)
    assert isinstance(better, NotMeasured)
    assert better.not_measured.startswith("more than 1.3e+15 FLOPs")
    assert isinstance(worse, NotMeasured)
    assert worse.not_measured.startswith("less than 1e+12 FLOPs")


def test_a_rung_that_cost_more_for_nothing_is_passed_over():
    ladder = rungs()
    ladder[2] = ladder[1] * 1.02
    figure = measured(equivalent_compute(Bootstrap(N), spread(law(FLOPS[2])), ladder, FLOPS, COUNTS))
    assert figure.value == pytest.approx(FLOPS[2], rel=1e-9)  # the chord from rung 1 to rung 3 of a pure power law


def test_the_rungs_themselves_are_worth_their_own_compute():
    for flops, own in zip(FLOPS, rungs(irreducible=1.0), strict=True):
        figure = measured(equivalent_compute(Bootstrap(N), own, rungs(irreducible=1.0), FLOPS, COUNTS))
        assert figure.value == pytest.approx(flops, rel=1e-6)


def test_what_is_no_ladder_is_refused():
    with pytest.raises(WrongShape, match="in the order of their compute"):
        equivalent_compute(Bootstrap(N), COUNTS, rungs(), FLOPS[::-1], COUNTS)
    with pytest.raises(WrongShape, match="2 rungs at least"):
        equivalent_compute(Bootstrap(N), COUNTS, rungs()[:1], FLOPS[:1], COUNTS)
    few = equivalent_compute(Bootstrap(1), COUNTS[:1], rungs()[:, :1], FLOPS, COUNTS[:1])
    assert isinstance(few, NotMeasured)


def test_the_line_has_the_planted_slope_and_its_misfit_tells_a_bent_law():
    straight = power_law(Bootstrap(N), rungs(), FLOPS, EACH)
    bent = power_law(Bootstrap(N), rungs(irreducible=2.0, exponent=0.4), FLOPS, EACH)
    assert not isinstance(straight, NotMeasured)
    assert not isinstance(bent, NotMeasured)
    assert measured(straight.doubling).value == pytest.approx(2**-0.1)
    assert measured(straight.misfit).value < 1e-9
    assert measured(bent.misfit).value > 0.05
    assert isinstance(power_law(Bootstrap(N), rungs()[:2], FLOPS[:2], EACH[:2]), NotMeasured)


def test_rungs_may_have_counts_of_their_own():
    """Bytes of the same text that other tokenizers score: a mean is a mean."""
    ladder = rungs()
    ladder[1], each = ladder[1] * 0.9, EACH.copy()
    each[1] *= 0.9
    a = equivalent_compute(Bootstrap(N), spread(law(2e13)), rungs(), FLOPS, COUNTS)
    b = equivalent_compute(Bootstrap(N), spread(law(2e13)), ladder, FLOPS, COUNTS, each)
    assert measured(a).value == pytest.approx(measured(b).value)
