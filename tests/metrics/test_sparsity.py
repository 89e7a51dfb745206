import numpy as np
import pytest
import torch

from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, Dead, Sparsity


def run(z: torch.Tensor, mask=None, batch=1000, order=None) -> Sparsity:
    counts = Sparsity(len(z), z.shape[-1])
    order = torch.arange(len(z)) if order is None else order
    for rows in order.split(batch):
        counts.update(Latents.from_dense(z[rows]), rows, None if mask is None else mask[rows])
    return counts


def value(figure) -> float:
    assert isinstance(figure, Measured), figure
    return figure.value


def dead(counts: Sparsity) -> Dead:
    found = counts.dead()
    assert isinstance(found, Dead)
    return found


@pytest.fixture
def z():
    torch.manual_seed(0)
    return torch.relu(torch.randn(20, 7, 40) - 1.0)


def test_by_hand():
    z = torch.zeros(2, 2, 4)
    z[0, 0, 0] = z[0, 1, 0] = z[0, 1, 1] = z[1, 1, 0] = 2.0
    counts, bootstrap = run(z), Bootstrap(2)
    assert value(counts.l0(bootstrap)) == 1
    assert counts.density().tolist() == [0.75, 0.25, 0, 0]
    found = dead(counts)
    assert value(found.share) == 0.5
    assert value(found.seen_once) == 0.25
    assert found.resolution == 3 / 4
    assert isinstance(found.share, Measured)
    assert found.share.n == 4
    histogram = counts.density_histogram()
    assert histogram.n_silent == 2
    assert histogram.counts.sum() == 2
    assert len(histogram.edges) == len(histogram.counts) + 1


def test_quantiles_agree_with_numpy(z):
    counts, bootstrap = run(z), Bootstrap(20)
    l0 = (z != 0).sum(-1).numpy().reshape(-1)
    for q in (0.5, 0.95, 1.0):
        figure = counts.l0_quantile(q, bootstrap)
        assert isinstance(figure, Measured)
        assert figure.value == np.quantile(l0, q, method="inverted_cdf")
        assert figure.low <= figure.value <= figure.high
    assert value(counts.l0(bootstrap)) == pytest.approx(l0.mean())


def test_quantiles_with_many_distinct_values():
    z = torch.zeros(4, 300, 1200)
    for i in range(300):
        z[:, i, : 4 * i] = 1
    assert value(run(z).l0_quantile(0.5, Bootstrap(4))) == 4 * 149


def test_batches_order_shards_and_permutation_do_not_matter(z):
    bootstrap = Bootstrap(20)
    whole = run(z)

    def same(other: Sparsity) -> bool:
        return (
            other.l0(bootstrap) == whole.l0(bootstrap)
            and other.l0_quantile(0.5, bootstrap) == whole.l0_quantile(0.5, bootstrap)
            and dead(other) == dead(whole)
            and np.array_equal(np.sort(other.fires), np.sort(whole.fires))
        )

    assert same(run(z, batch=3))
    assert same(run(z, batch=3, order=torch.randperm(20)))
    assert same(run((z * torch.rand(40).add(0.1))[..., torch.randperm(40)]))
    halves = [Sparsity(20, 40), Sparsity(20, 40)]
    for half, rows in zip(halves, (torch.arange(10), torch.arange(10, 20)), strict=True):
        half.update(Latents.from_dense(z[rows]), rows)
    assert same(halves[0].merge(halves[1]))


def test_masked_places_are_not_counted(z):
    mask = torch.rand(20, 7) > 0.4
    noisy = torch.where(mask[..., None], z, 1.0)
    counts = run(noisy, mask)
    assert counts.n_places == int(mask.sum())
    np.testing.assert_array_equal(counts.fires, (z[mask] != 0).sum(0).numpy())
    assert value(counts.l0(Bootstrap(20))) == pytest.approx(float((z[mask] != 0).sum(-1).double().mean()))


def test_nothing_seen_gives_reasons_and_wrong_shapes_are_refused(z):
    empty = Sparsity(3, 40)
    assert isinstance(empty.dead(), NotMeasured)
    assert isinstance(empty.l0(Bootstrap(3)), NotMeasured)
    assert isinstance(empty.l0_quantile(0.5, Bootstrap(3)), NotMeasured)
    with pytest.raises(WrongShape, match="do not fit"):
        Sparsity(20, 39).update(Latents.from_dense(z), torch.arange(20))
