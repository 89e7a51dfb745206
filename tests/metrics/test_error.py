"""The error's rank and predictability on planted errors."""

import numpy as np
import pytest
import torch

from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, ErrorFit, ErrorSums

D_IN, D_OUT, N, SEQUENCES = 12, 10, 20_000, 20
ROW = torch.arange(N) % SEQUENCES


def planted(rank: int, linear: float, seed: int = 0):
    """Inputs, and errors in `rank` directions of which the share `linear` of the variance is a linear map of them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D_IN, generator=g)
    basis = torch.linalg.qr(torch.randn(D_OUT, D_OUT, generator=torch.Generator().manual_seed(7)))[0][:, :rank]
    W = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(8)))[0][:, :rank]
    own = torch.randn(N, rank, generator=g)
    return x + 3, (linear**0.5 * x @ W + (1 - linear) ** 0.5 * own) @ basis.T


def sums(rank: int, linear: float, ranks=(1, 2, 5, 10)) -> ErrorSums:
    fit = ErrorFit(D_IN, D_OUT)
    for part in torch.arange(N).split(2500):
        x, e = planted(rank, linear)
        fit.update(x[part], e[part])
    found = ErrorSums(SEQUENCES, fit, ranks)
    found.update(*planted(rank, linear, seed=1), ROW)
    return found


def measured(metric) -> Measured:
    assert isinstance(metric, Measured), metric
    assert metric.low <= metric.value <= metric.high
    return metric


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_error_lies_in_the_planted_directions(rank):
    found, b = sums(rank, 0.3), Bootstrap(SEQUENCES)
    assert measured(found.share(rank, b)).value == pytest.approx(1, abs=1e-6)
    if rank > 1:
        assert measured(found.share(1, b)).value == pytest.approx(1 / rank, abs=0.05)
    assert measured(found.share(10, b)).value == pytest.approx(1, abs=1e-9)


def test_an_error_without_direction_gives_chance():
    assert measured(sums(D_OUT, 0.0).share(5, Bootstrap(SEQUENCES))).value == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("linear", [0.0, 0.3, 0.9, 1.0])
def test_the_predictable_share_is_the_planted_one_and_the_control_is_chance(linear):
    found, b = sums(4, linear), Bootstrap(SEQUENCES)
    figure, control = measured(found.predictable(b)), measured(found.predictable(b, shuffled=True))
    assert figure.value == pytest.approx(linear, abs=0.03)
    assert figure.unit == "fraction"
    assert control.value == pytest.approx(0, abs=0.03)  # four standard deviations of its own noise


def test_the_interval_holds_the_planted_share():
    figure = measured(sums(4, 0.3).predictable(Bootstrap(SEQUENCES)))
    assert figure.low - 0.01 <= 0.3 <= figure.high + 0.01
    assert 0 < figure.high - figure.low < 0.1


def test_units_and_batches_change_nothing():
    """Activations times 10, or rows added in other portions: the same shares."""
    a, b = ErrorFit(D_IN, D_OUT), ErrorFit(D_IN, D_OUT)
    x, e = planted(3, 0.5)
    a.update(x, e)
    for part in torch.arange(N).split(333):
        b.update(10 * x[part], 10 * e[part])
    first, second = ErrorSums(SEQUENCES, a, (1, 3)), ErrorSums(SEQUENCES, b, (1, 3))
    first.update(x, e, ROW)
    for part in torch.arange(N).split(777):
        second.update(10 * x[part], 10 * e[part], ROW[part])
    bootstrap = Bootstrap(SEQUENCES)
    for figure in (lambda s: s.share(1, bootstrap), lambda s: s.predictable(bootstrap)):
        assert measured(figure(first)).value == pytest.approx(measured(figure(second)).value, rel=1e-6)


def test_no_error_is_no_figure():
    fit = ErrorFit(D_IN, D_OUT)
    x = torch.randn(100, D_IN)
    fit.update(x, torch.zeros(100, D_OUT))
    found = ErrorSums(5, fit, (1,))
    found.update(x, torch.zeros(100, D_OUT), torch.arange(100) % 5)
    assert isinstance(found.share(1, Bootstrap(5)), NotMeasured)
    assert isinstance(found.predictable(Bootstrap(5)), NotMeasured)


def test_what_does_not_fit_is_refused():
    fit = ErrorFit(D_IN, D_OUT)
    with pytest.raises(WrongShape, match="rows of input"):
        fit.update(torch.zeros(3, D_IN), torch.zeros(2, D_OUT))
    fit.update(*planted(1, 0.5))
    with pytest.raises(WrongShape, match="first 11"):
        ErrorSums(5, fit, (1, 11))


def test_sequences_without_rows_are_not_counted():
    fit = ErrorFit(D_IN, D_OUT)
    x, e = planted(2, 0.5)
    fit.update(x, e)
    found = ErrorSums(30, fit, (1,))
    found.update(x, e, ROW)
    assert measured(found.share(1, Bootstrap(30))).n == SEQUENCES
    assert np.count_nonzero(found.rows) == SEQUENCES
