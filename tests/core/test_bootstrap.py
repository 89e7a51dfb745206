import numpy as np
import pytest

from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap


def measured(figure) -> Measured:
    assert isinstance(figure, Measured), figure
    return figure


def test_ratio_on_four_numbers():
    figure = measured(Bootstrap(4).ratio(np.array([1.0, 2, 3, 4]), np.array([1, 1, 2, 4]), "nats"))
    assert figure.value == pytest.approx(10 / 8)
    assert figure.low < figure.value < figure.high
    assert (figure.unit, figure.n) == ("nats", 4)


@pytest.mark.parametrize("n", [8, 40])
def test_interval_covers_the_truth_about_95_times_in_100(n):
    rng = np.random.default_rng(1)
    hits = []
    for trial in range(400):
        counts = rng.integers(5, 30, n)
        sums = counts * (2.0 + rng.normal(size=n))  # a level of its own per sequence: places are not independent
        figure = measured(Bootstrap(n, seed=trial, n_resamples=500).ratio(sums, counts, "nats"))
        hits.append(figure.low <= 2.0 <= figure.high)
    assert 0.925 <= np.mean(hits) <= 0.975 if n == 40 else 0.91 <= np.mean(hits) <= 0.98


def test_width_agrees_with_the_standard_error_of_a_mean():
    x = np.random.default_rng(2).normal(size=2000)
    figure = measured(Bootstrap(len(x), n_resamples=4000).ratio(x, np.ones(len(x)), "nats"))
    assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * x.std(ddof=1) / np.sqrt(len(x)), rel=0.06)


def test_an_arm_against_itself_differs_by_exactly_nothing():
    x = np.random.default_rng(3).normal(size=50) * 1e3
    figure = measured(Bootstrap(50).difference(x, x.copy(), np.full(50, 7), "nats"))
    assert figure.value == figure.low == figure.high == 0


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(4)
    base, n = rng.normal(size=300) * 5, np.ones(300)
    bootstrap = Bootstrap(300)
    paired = measured(bootstrap.difference(base + 0.1 + rng.normal(size=300) * 0.01, base, n, "nats"))
    alone = measured(bootstrap.ratio(base, n, "nats"))
    assert paired.low > 0
    assert paired.high - paired.low < 0.02 * (alone.high - alone.low)


def test_two_calls_and_two_equal_bootstraps_see_the_same_resamples():
    x, n = np.random.default_rng(5).normal(size=60), np.ones(60)
    assert Bootstrap(60, seed=9).ratio(x, n, "nats") == Bootstrap(60, seed=9).ratio(x, n, "nats")
    assert Bootstrap(60, seed=9).ratio(x, n, "nats") != Bootstrap(60, seed=10).ratio(x, n, "nats")
    bootstrap = Bootstrap(60)
    sums = bootstrap.sums(a=x, b=x[:, None] * np.ones(3))
    np.testing.assert_allclose(sums["b"][:, 1], sums["a"], atol=1e-12)
    assert sums["a"][0] == pytest.approx(x.sum())


def test_sequences_without_anything_to_measure_change_no_value_and_are_not_counted():
    counts = np.array([3, 0, 5, 2, 0, 4, 6, 1])
    figure = measured(Bootstrap(8).ratio(counts * 2.0, counts, "nats"))
    assert (figure.value, figure.low, figure.high, figure.n) == (2, 2, 2, 6)


@pytest.mark.parametrize(
    ("counts", "says"),
    [([0, 0, 0], "at least 2 sequences; 0"), ([4, 0, 0], "at least 2 sequences; 1"), ([4, 4] + [0] * 98, "too few")],
)
def test_too_few_sequences_give_a_reason_and_no_figure(counts, says):
    figure = Bootstrap(len(counts)).ratio(np.array(counts) * 1.0, np.array(counts), "nats")
    assert isinstance(figure, NotMeasured)
    assert says in figure.not_measured


def test_no_sequence_at_all_gives_a_reason():
    assert isinstance(Bootstrap(0).ratio(np.zeros(0), np.zeros(0), "nats"), NotMeasured)
    assert isinstance(Bootstrap(1).ratio(np.ones(1), np.ones(1), "nats"), NotMeasured)


def test_recovered_on_known_losses():
    rng = np.random.default_rng(6)
    counts = rng.integers(50, 100, 200)
    clean = counts * rng.normal(3, 0.3, 200)
    baseline, replaced = clean + 4.0 * counts, clean + 1.0 * counts
    bootstrap = Bootstrap(200)
    figure = measured(bootstrap.recovered(baseline, replaced, clean, counts))
    assert figure.value == pytest.approx(0.75)
    assert figure.high - figure.low < 1e-9  # every sequence recovers the same share
    assert measured(bootstrap.recovered(baseline, clean, clean, counts)).value == 1
    assert measured(bootstrap.recovered(baseline, baseline, clean, counts)).value == 0
    assert measured(bootstrap.recovered(baseline, baseline + counts, clean, counts)).value == pytest.approx(-0.25)


def test_a_harmless_baseline_leaves_nothing_to_recover():
    counts, clean = np.full(100, 10), np.full(100, 30.0)
    figure = Bootstrap(100).recovered(clean + counts * 5e-4, clean, clean, counts)
    assert isinstance(figure, NotMeasured)
    assert "nothing to recover" in figure.not_measured
    noisy = clean + np.random.default_rng(7).normal(0.02, 1, 100) * counts
    assert isinstance(Bootstrap(100).recovered(noisy, clean, clean, counts), NotMeasured)
    assert isinstance(Bootstrap(100).recovered(clean, clean, clean, counts * 0), NotMeasured)


def test_figure_takes_any_function_of_sums():
    x = np.random.default_rng(8).normal(size=(80, 3))
    bootstrap = Bootstrap(80)
    figure = measured(
        bootstrap.figure(lambda x, n: np.linalg.norm(x / n[:, None], axis=-1), "activation", x=x, n=np.ones(80))
    )
    assert figure.value == pytest.approx(np.linalg.norm(x.mean(0)))
    with pytest.raises(WrongShape, match="one row for each of 80"):
        bootstrap.ratio(x[:10, 0], np.ones(10), "nats")


def test_clusters_are_drawn_whole():
    """Rows that copy each other carry no information of their own: the interval is that of the originals."""
    x = np.random.default_rng(3).normal(size=40)
    alone = measured(Bootstrap(40).ratio(x, np.ones(40), "nats"))
    copies, document = np.repeat(x, 5), np.repeat(np.arange(40), 5)
    clustered = measured(Bootstrap(200, clusters=document).ratio(copies, np.ones(200), "nats"))
    naive = measured(Bootstrap(200).ratio(copies, np.ones(200), "nats"))
    assert clustered.n == 40
    assert (clustered.low, clustered.value, clustered.high) == pytest.approx((alone.low, alone.value, alone.high))
    assert naive.high - naive.low < 0.6 * (alone.high - alone.low)


def test_a_figure_that_is_no_function_of_sums_sees_the_same_resamples():
    x = np.random.default_rng(12).normal(size=30)
    bootstrap = Bootstrap(30, seed=3, n_resamples=200)
    by_index = measured(bootstrap.over_resamples(lambda i: float(x[i].mean()), "nats"))
    by_sums = measured(bootstrap.ratio(x, np.ones(30), "nats"))
    for name in ("value", "low", "high"):
        assert getattr(by_index, name) == pytest.approx(getattr(by_sums, name))
    assert (by_index.unit, by_index.n) == ("nats", 30)
    assert isinstance(Bootstrap(1).over_resamples(lambda i: 1.0, "nats"), NotMeasured)
