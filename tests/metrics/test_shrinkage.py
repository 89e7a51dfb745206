"""The scale that was planted comes back, whatever the mean, the unit and the basis."""

import numpy as np
import pytest
import torch

from understudy.core.bootstrap import Bootstrap
from understudy.metrics import Reconstruction
from understudy.metrics.shrinkage import Shrinkage, shrinkage

N, D = 40, 6


def planted(scale: float, mean: float = 0.0, noise: float = 0.0, seed: int = 0):
    """Rows, what is written back at `scale` of them around their mean, and the sequence of each."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N * 25, D, generator=g) * torch.linspace(0.5, 3, D)
    hat = scale * (x + noise * torch.randn(x.shape, generator=g)) + mean
    return x + mean, hat, torch.arange(N).repeat_interleave(25)


def measured(x, hat, sequences, batches: int = 1) -> float:
    counted = Shrinkage(N, x.mean(0))
    for part in torch.arange(len(x)).chunk(batches):
        counted.update(x[part], hat[part], sequences[part])
    return float(shrinkage({k: v.sum(0)[None] for k, v in counted.sums.items()})[0])


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_planted_scale_comes_back(scale, mean):
    assert measured(*planted(scale, mean)) == pytest.approx(1 - scale, abs=1e-6)


def test_an_unbiased_reconstruction_with_errors_has_none():
    x, hat, sequences = planted(1.0)
    missed = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert measured(hat + missed, hat, sequences) == pytest.approx(0.0, abs=0.02)


def test_a_projection_has_none():
    x, _, sequences = planted(1.0, mean=3.0)
    hat = x.clone()
    hat[:, 3:] = x[:, 3:].mean(0)
    assert measured(x, hat, sequences) == pytest.approx(0.0, abs=1e-6)


def test_it_is_the_scale_that_fits_best():
    x, hat, sequences = planted(0.7, noise=0.8)
    gamma, a, b = 1 - measured(x, hat, sequences), x - x.mean(0), hat - hat.mean(0)

    def error(scale: float) -> float:
        return float((a - b / scale).square().sum())

    assert error(gamma) < min(error(gamma * 1.01), error(gamma / 1.01))


def test_unit_basis_batches_and_an_added_constant_change_nothing():
    x, hat, sequences = planted(0.8, noise=0.3)
    plain = measured(x, hat, sequences)
    turn, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(2)))
    assert measured(10 * x, 10 * hat, sequences) == pytest.approx(plain, abs=1e-6)
    assert measured(x @ turn, hat @ turn, sequences) == pytest.approx(plain, abs=1e-5)
    assert measured(x + 50, hat + 50, sequences) == pytest.approx(plain, abs=1e-5)
    assert measured(x, hat, sequences, batches=7) == pytest.approx(plain, abs=1e-9)


def test_the_published_ratio_hides_it_behind_a_mean_and_this_one_does_not():
    x, hat, sequences = planted(0.8, mean=30.0)
    published = Reconstruction("act", N)
    published.update(x[:, None], hat[:, None], sequences)
    assert published.shrinkage(Bootstrap(N)).value == pytest.approx(1.0, abs=0.002)
    assert measured(x, hat, sequences) == pytest.approx(0.2, abs=1e-5)


def test_nothing_written_along_the_activations_has_no_figure():
    x, hat, sequences = planted(1.0)
    assert np.isnan(measured(x, -hat, sequences))
    assert np.isnan(measured(x, torch.zeros_like(x), sequences))
