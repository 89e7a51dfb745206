import numpy as np
import pytest
import torch

from understudy.core.latents import Latents
from understudy.core.records.errors import BadActivations, WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, Reconstruction

SITE = "model.layers.0.mlp:out"
N, POS, D = 24, 6, 5


@pytest.fixture
def data():
    torch.manual_seed(0)
    x = torch.randn(N, POS, D, dtype=torch.float64) + 3
    return x, x + 0.3 * torch.randn_like(x)


def run(x, x_hat, mask=None, batch=N, order=None, reference=None) -> Reconstruction:
    sums = Reconstruction(SITE, len(x), reference)
    order = torch.arange(len(x)) if order is None else order
    for rows in order.split(batch):
        sums.update(x[rows], x_hat[rows], rows, None if mask is None else mask[rows])
    return sums


def figures(sums: Reconstruction) -> np.ndarray:
    bootstrap = Bootstrap(sums.n_sequences, n_resamples=200)
    out = []
    for figure in (sums.fvu(bootstrap), sums.shrinkage(bootstrap), sums.cosine(bootstrap), sums.mse(bootstrap)):
        assert isinstance(figure, Measured), figure
        out.append((figure.value, figure.low, figure.high, figure.n))
    return np.array(out)


def value(figure) -> float:
    assert isinstance(figure, Measured), figure
    return figure.value


def test_four_numbers_by_hand():
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])  # mean 3, total variance 4 + 1 + 0 + 9 = 14
    x_hat = torch.tensor([[1.0], [1.0], [3.0], [4.0]])  # errors 0 + 1 + 0 + 4 = 5
    sums, bootstrap = run(x, x_hat), Bootstrap(4)
    assert value(sums.fvu(bootstrap)) == pytest.approx(5 / 14)
    assert value(sums.shrinkage(bootstrap)) == pytest.approx((1 + 1 + 9 + 16) / (1 + 2 + 9 + 24))
    assert value(sums.cosine(bootstrap)) == pytest.approx(1)
    assert value(sums.mse(bootstrap)) == pytest.approx(5 / 4)


def test_identity_is_0_and_the_mean_is_1(data):
    x, _ = data
    assert value(run(x, x).fvu(Bootstrap(N))) == 0
    mean = x.reshape(-1, D).mean(0).expand_as(x)
    assert value(run(x, mean).fvu(Bootstrap(N))) == pytest.approx(1, abs=1e-12)


def test_fvu_is_pooled_not_averaged_over_places():
    x = torch.tensor([[[0.0], [0.0], [0.01]], [[10.0], [-10.0], [0.0]]])
    x_hat = torch.tensor([[[0.0], [0.0], [0.11]], [[10.0], [-10.0], [0.0]]])
    mean = x.double().mean()
    per_place = (((x - x_hat) ** 2) / (x - mean) ** 2).double().mean()
    assert value(run(x, x_hat).fvu(Bootstrap(2))) == pytest.approx(0.01 / 200, rel=1e-3)
    assert per_place > 10


def test_a_constant_error_raises_fvu(data):
    x, x_hat = data
    bootstrap = Bootstrap(N)
    assert value(run(x, x_hat + 1).fvu(bootstrap)) > value(run(x, x_hat).fvu(bootstrap)) + 0.5


def test_interval_holds_the_centre_of_each_resample(data):
    """Resampling by hand, one resample at a time, gives the same draws."""
    x, x_hat = data
    bootstrap = Bootstrap(N, n_resamples=20)
    sums = run(x, x_hat)
    draws = sums.fvu_draws(bootstrap)
    for row in range(1, 21):
        times = torch.from_numpy(bootstrap._weights[row].astype(np.int64))
        a, b = (t.repeat_interleave(times, 0).reshape(-1, D) for t in (x, x_hat))
        assert draws[row] == pytest.approx(float((a - b).square().sum() / (a - a.mean(0)).square().sum()))


def test_units_do_not_matter(data):
    x, x_hat = data
    np.testing.assert_allclose(figures(run(x, x_hat))[:3], figures(run(x * 10, x_hat * 10))[:3], rtol=1e-9)


def test_batch_size_and_order_do_not_matter(data):
    x, x_hat = data
    whole = figures(run(x, x_hat))
    np.testing.assert_allclose(figures(run(x, x_hat, batch=5)), whole, rtol=1e-9)
    np.testing.assert_allclose(figures(run(x, x_hat, batch=7, order=torch.randperm(N))), whole, rtol=1e-9)


def test_masked_places_do_not_matter_whatever_they_hold(data):
    x, x_hat = data
    pad = torch.full((N, 3, D), float("nan"), dtype=x.dtype)
    mask = torch.cat([torch.ones(N, POS), torch.zeros(N, 3)], 1).bool()
    padded = run(torch.cat([x, pad], 1), torch.cat([x_hat, pad.nan_to_num(nan=torch.inf)], 1), mask)
    np.testing.assert_allclose(figures(padded), figures(run(x, x_hat)), rtol=1e-12)


def test_permuted_and_rescaled_latents_do_not_matter(data):
    x, _ = data
    z, W = torch.relu(torch.randn(N, POS, 8, dtype=x.dtype)), torch.rand(8, D, dtype=x.dtype)
    permutation, scale = torch.randperm(8), torch.rand(8, dtype=x.dtype) + 0.5
    other = Latents.from_dense((z * scale)[..., permutation]).decode((W / scale[:, None])[permutation])
    plain = figures(run(x, Latents.from_dense(z).decode(W)))
    np.testing.assert_allclose(figures(run(x, other)), plain, rtol=1e-9)


def test_merged_shards_equal_one_pass(data):
    x, x_hat = data
    whole = figures(run(x, x_hat))
    for cuts in ([N // 2], [5, 11]):
        shards = []
        for rows in torch.arange(N).tensor_split(cuts):
            shard = Reconstruction(SITE, N)  # each around the mean of its own first batch
            shard.update(x[rows], x_hat[rows], rows)
            shards.append(shard)
        merged = Reconstruction(SITE, N)
        for shard in shards:
            merged = merged.merge(shard)
        np.testing.assert_allclose(figures(merged), whole, rtol=1e-9)
        np.testing.assert_allclose(figures(Reconstruction(SITE, N).merge(merged)), whole, rtol=1e-9)
    with pytest.raises(WrongShape, match="Cannot merge"):
        merged.merge(Reconstruction("other:out", N))


def test_a_huge_mean_does_not_drown_the_variance(data):
    x, x_hat = data
    shift = torch.full((D,), 1e5, dtype=x.dtype)
    np.testing.assert_allclose(figures(run(x + shift, x_hat + shift))[0], figures(run(x, x_hat))[0], rtol=1e-6)


def test_two_dictionaries_are_compared_in_pairs(data):
    x, x_hat = data
    good, bad, bootstrap = run(x, x_hat), run(x, x + 1.1 * (x_hat - x)), Bootstrap(N)
    difference = bad.fvu_difference(good, bootstrap)
    assert isinstance(difference, Measured)
    assert difference.value == pytest.approx(0.21 * value(good.fvu(bootstrap)))
    assert difference.low > 0
    assert value(good.fvu_difference(run(x, x_hat), bootstrap)) == 0
    with pytest.raises(WrongShape, match="same places"):
        good.fvu_difference(run(x, x_hat, torch.rand(N, POS) > 0.5), bootstrap)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_name_the_site_the_batch_and_the_sequence(data, bad):
    x, x_hat = data
    sums = Reconstruction(SITE, N)
    sums.update(x[:4], x_hat[:4], torch.arange(4))
    broken = x[4:8].clone()
    broken[2, 1, 0] = bad
    with pytest.raises(BadActivations, match=rf"activations at {SITE} are not finite in batch 1, sequence 6"):
        sums.update(broken, x_hat[4:8], torch.arange(4, 8))
    with pytest.raises(BadActivations, match="reconstruction"):
        sums.update(x[4:8], broken, torch.arange(4, 8))


def test_constant_activations_have_no_variance_to_explain():
    x = torch.full((4, 3, 2), 1234.567)
    figure = run(x, x).fvu(Bootstrap(4))
    assert isinstance(figure, NotMeasured)
    assert "constant over all 12 places" in figure.not_measured


def test_nothing_seen_and_nothing_written_give_reasons(data):
    x, _ = data
    empty = Reconstruction(SITE, 3)
    for figure in (empty.fvu(Bootstrap(3)), empty.shrinkage(Bootstrap(3)), empty.cosine(Bootstrap(3))):
        assert isinstance(figure, NotMeasured)
    assert isinstance(run(x, torch.zeros_like(x)).shrinkage(Bootstrap(N)), NotMeasured)
    assert value(run(x, torch.zeros_like(x)).cosine(Bootstrap(N))) == 0


def test_shapes_that_do_not_fit_are_refused(data):
    x, x_hat = data
    with pytest.raises((WrongShape, TypeError)):  # TypeError where the suite checks annotations
        Reconstruction(SITE, N).update(x, x_hat[:, :2], torch.arange(N))
    sums = run(x, x_hat)
    with pytest.raises(WrongShape, match="had width 5 before and has 4 now"):
        sums.update(x[..., :4], x_hat[..., :4], torch.arange(N))
