from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import top as module
from understudy.core.latents import LinearPre
from understudy.core.records.errors import Imprecise
from understudy.core.top import Narrow, Searched, largest, largest_of_candidates, top


def encoder(n=1000, d=24, rows=40, seed=0, spread=0.0, bias=0.1):
    """x, W, b; `spread`: how far lengths of W's rows lie apart, in factors of e."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n, d, generator=g) / d**0.5 * (spread * torch.randn(n, 1, generator=g)).exp()
    return torch.randn(rows, d, generator=g), W, bias * torch.randn(n, generator=g)


def truth(x, W, b, k):
    """Ids of the k largest by arithmetic in fp64, sorted, and the gap to the next."""
    best = (x.double() @ W.double().T + b.double()).topk(min(k + 1, len(W)), dim=1)
    gap = best.values[:, k - 1] - best.values[:, k] if k < len(W) else torch.full((len(x),), torch.inf)
    return best.indices[:, :k].sort(1).values, gap


def ids_of(found, rows):
    return found[0].view(rows, -1).sort(1).values


# -- blocks -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 10**6), st.sampled_from([None, 3, 1]))
def test_blocks_find_what_a_full_ranking_finds(k, n, seed, levels):
    """Whatever n is a multiple of. With `levels` most entries are equal: values are compared, and ids are distinct."""
    k = min(k, n)
    block = torch.randn(5, n, generator=torch.Generator().manual_seed(seed))
    if levels:
        block = (block * levels).round()
    ids, values = top(block, k)
    assert torch.equal(values.sort(1).values, block.topk(k, dim=1).values.sort(1).values)
    assert torch.equal(block.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_blocks_are_used_where_they_help():
    """Otherwise the tests above would only ever see `topk`."""
    assert [module._block_size(*s) for s in ((8192, 32), (24576, 32), (65536, 64))] == [16, 32, 32]
    assert module._block_size(700, 9) > 1
    assert module._block_size(10, 9) == 1


def test_nan_is_never_hidden():
    x, W, b = encoder()
    x[3, 0] = torch.nan
    for find in (largest, largest_of_candidates):
        values = find(x, W, b, 4)[1].view(40, 4)
        assert bool(values[3].isnan().all())
        assert bool(values[[0, 1, 2, 4]].isfinite().all())


def test_chunks_change_nothing(monkeypatch):
    x, W, b = encoder()
    expected = [find(x, W, b, 6) for find in (largest, largest_of_candidates)]
    monkeypatch.setattr(module, "CHUNK_BYTES", 7 * 4000)
    for find, (ids, values) in zip((largest, largest_of_candidates), expected):
        again = find(x, W, b, 6)
        assert torch.equal(again[0].view(40, 6).sort(1).values, ids.view(40, 6).sort(1).values)
        torch.testing.assert_close(again[1].view(40, 6).sort(1).values, values.view(40, 6).sort(1).values)


# -- candidates from a bf16 product -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 30.0]), st.integers(1, 12),
    st.sampled_from([7, 300, 1000, 1031]), st.sampled_from([1.0, 1e-4, 1e4]),
)  # fmt: skip
def test_no_true_latent_escapes(seed, spread, bias, k, n, scale):
    """The same latents as arithmetic in fp64 finds, wherever fp32 could tell: rows of very different lengths, large
    biases, any units."""
    k = min(k, n)
    x, W, b = encoder(n=n, seed=seed, spread=spread, bias=bias)
    x = scale * x
    expected, gap = truth(x, W, b, k)
    certain = gap > 1e-5 * (x.norm(dim=1) * W.norm(dim=1).max() + b.abs().max())
    found = ids_of(largest_of_candidates(x, W, b, k), len(x))
    assert torch.equal(found[certain], expected[certain])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_error_bound_holds_for_every_product(seed, spread, scale):
    x, W, b = encoder(n=640, seed=seed, spread=spread)
    W = scale * W
    narrow = Narrow(W, b, 640 // 8)
    row, latent, product, bound = narrow.candidates(x)
    exact = (x.double() @ W.double().T + b.double())[row, latent]
    assert len(row) >= 40 * 80
    assert bool(((exact - product).abs() <= bound).all())
    assert bool((bound < 0.05 * (x.norm(dim=1)[row] * W.norm(dim=1).max() + 0.5)).all()), "a bound that says something"


def test_differences_that_bf16_cannot_see_are_decided_in_fp32():
    """200 latents whose pre-activations agree to three digits: a ranking in bf16 gets most of them wrong."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(32, generator=g)
    W = base + 1e-3 * torch.randn(2000, 32, generator=g)
    W[200:] = 0.1 * torch.randn(1800, 32, generator=g)
    x, b = base + 0.01 * torch.randn(16, 32, generator=g), torch.zeros(2000)
    expected, _ = truth(x, W, b, 10)
    in_bf16 = (x.bfloat16() @ W.bfloat16().T).topk(10, dim=1).indices.sort(1).values
    assert (in_bf16 == expected).float().mean() < 0.5
    searched = Searched()
    assert torch.equal(ids_of(largest_of_candidates(x, W, b, 10, searched), 16), expected)
    assert searched.whole_rows == 16, "more candidates than are worth ranking: done whole"


def test_few_candidates_are_ranked_where_products_differ():
    x, W, b = encoder(n=4096, d=256, rows=100)
    searched = Searched()
    found = ids_of(largest_of_candidates(x, W, b, 16, searched), 100)
    assert torch.equal(found, truth(x, W, b, 16)[0])
    assert searched.rows == 100
    assert searched.whole_rows == 0
    assert 16 * 100 <= searched.candidates < 3 * 16 * 100


def test_values_and_gradients_are_those_of_fp32():
    x, W, b = encoder(n=4096, d=64)
    grads = []
    for search in ("fp32", "bf16"):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        z = LinearPre(*leaves, search).top(16)
        z.values.square().sum().backward()
        grads.append([z.dense(), *(t.grad for t in leaves)])
    for a, c in zip(*grads):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [1.02, 0.98])
def test_a_processor_that_rounds_more_coarsely_is_found_out(wrong, monkeypatch):
    mm = torch.mm

    def coarse(a, c, out):
        return mm(a, c, out=out).mul_(wrong)

    x, W, b = encoder(n=4096, d=256)
    monkeypatch.setattr(module.torch, "mm", coarse)
    with pytest.raises(Imprecise, match="--search fp32"):
        largest_of_candidates(x, W, b, 16)


def test_rows_that_bf16_says_nothing_about_take_no_memory():
    """Every latent can be among the k largest: none is gathered, and fp32 decides."""
    x, W, b = torch.ones(3, 8), torch.ones(4096, 8), torch.zeros(4096)
    W[100:105] += 1e-4
    assert all(len(part) == 0 for part in Narrow(W, b, 5).candidates(x))
    searched = Searched()
    ids, _ = largest_of_candidates(x, W, b, 5, searched)
    assert ids.view(3, 5).sort(1).values.tolist() == [[100, 101, 102, 103, 104]] * 3
    assert (searched.whole_rows, searched.candidates) == (3, 0)


def test_all_latents_alike():
    x, W, b = torch.ones(3, 8), torch.ones(500, 8), torch.zeros(500)
    ids, values = largest_of_candidates(x, W, b, 5)
    assert values.tolist() == [8.0] * 15
    assert all(len(set(row)) == 5 for row in ids.view(3, 5).tolist())


# -- how a GPU sums ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False, (False, False)])
def reductions(request):
    """torch's setting, as somebody has it; put back after the test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = request.param
    yield _reductions
    matmul.allow_bf16_reduced_precision_reduction = before


def _reductions():
    matmul = torch.backends.cuda.matmul
    return (
        matmul.allow_bf16_reduced_precision_reduction,
        getattr(matmul, "allow_bf16_reduced_precision_reduction_split_k", None),
    )


def test_a_gpus_bf16_product_is_summed_in_fp32_and_the_setting_put_back(reductions):
    before = reductions()
    with module.sums_in_fp32(torch.device("cuda")):
        assert not reductions()[0]
    assert reductions() == before
    with pytest.raises(ZeroDivisionError), module.sums_in_fp32(torch.device("cuda")):
        _ = 1 / 0
    assert reductions() == before
    with module.sums_in_fp32(torch.device("cpu")):
        assert reductions() == before


def test_the_product_of_candidates_is_taken_there(monkeypatch):
    """Its bound allows for sums in fp32 only."""
    x, W, b = encoder()
    within, real = [], module.sums_in_fp32

    @contextmanager
    def noted(device):
        within.append(device)
        with real(device):
            yield
            within.append("done")

    def mm(*given, **kwargs):
        assert within[-1:] == [x.device], "outside"
        return product(*given, **kwargs)

    product = torch.mm
    monkeypatch.setattr(module, "sums_in_fp32", noted)
    monkeypatch.setattr(torch, "mm", mm)
    Narrow(W, b, 4).candidates(x)
    assert within == [x.device, "done"]
