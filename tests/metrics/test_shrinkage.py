"""The scale that was planted comes back, whatever the mean, the unit and the basis."""

import numpy as np
import pytest
import torch

from understudy.core.bootstrap import Bootstrap
from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape
from understudy.metrics import Reconstruction
from understudy.metrics.shrinkage import ROWS_AT_ONCE, Shrinkage, refit, shrinkage

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


def latents(mean: float = 40.0):
    """Latents, their atoms, and places of which they say little: one is never on, and two are the same."""
    g = torch.Generator().manual_seed(7)
    z = (torch.randn(ROWS_AT_ONCE + 900, 9, generator=g) - 0.5).clamp(min=0).double()
    atoms = torch.randn(9, D, generator=g).double()
    z[:, 3], z[:, 4], atoms[4] = 0, z[:, 5], atoms[5]
    x = 0.6 * z @ atoms + 3 * torch.randn(len(z), D, generator=g).double() + mean
    return z, atoms, x


def of_one_table(x, hat) -> float:
    return measured(x, hat, torch.arange(len(x)) % N)


def test_a_refit_has_no_shrinkage_however_badly_it_fits_and_a_planted_tenth_is_a_tenth():
    z, atoms, x = latents()
    fitted, bias = refit(Latents.from_dense(z), atoms, x)
    hat = z @ fitted + bias
    assert float((x - hat).square().sum() / (x - x.mean(0)).square().sum()) > 0.5
    assert of_one_table(x, hat) == pytest.approx(0.0, abs=1e-9)
    short = hat.mean(0) + 0.9 * (hat - hat.mean(0))
    assert of_one_table(x, short) == pytest.approx(0.1, abs=1e-9)


def test_a_refit_is_the_least_squares_solution():
    z, atoms, x = latents()
    fitted, bias = refit(Latents.from_dense(z), atoms, x)
    table = ((z - z.mean(0))[:, :, None] * atoms).transpose(1, 2).reshape(-1, len(atoms))
    best = torch.linalg.lstsq(table, (x - x.mean(0)).reshape(-1), driver="gelsd").solution
    torch.testing.assert_close(z @ fitted + bias, (table @ best).reshape(x.shape) + x.mean(0), atol=1e-9, rtol=0)
    assert float(fitted[3].abs().max()) < 1e-9
    kept = [0, 1, 2, 6, 7, 8]
    lengths = torch.linalg.lstsq(atoms[kept].flatten()[:, None], fitted[kept].flatten()[:, None]).solution
    assert float(lengths) == pytest.approx(0.6, abs=0.1)


def test_the_control_can_fail_where_lengths_are_fitted_to_something_else():
    z, atoms, x = latents()
    fitted, bias = refit(Latents.from_dense(z), atoms, x.mean(0) + 0.7 * (x - x.mean(0)))
    assert of_one_table(x, z @ fitted + bias) == pytest.approx(0.3, abs=1e-9)


def test_a_refit_needs_the_same_places():
    z, atoms, x = latents()
    with pytest.raises(WrongShape, match="same places"):
        refit(Latents.from_dense(z), atoms, x[:-1])
