from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import narrow as module
from understudy.core import top as tops
from understudy.core.candidates import Searched, above_of_candidates, largest_of_candidates
from understudy.core.latents import LinearPre
from understudy.core.narrow import NARROW, InBf16
from understudy.core.records.errors import BadInput, Imprecise
from understudy.core.top import largest

BITS = pytest.mark.parametrize("bits", list(NARROW))
WAYS = [largest, *(partial(largest_of_candidates, bits=bits) for bits in NARROW)]


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


def test_nan_is_never_hidden():
    x, W, b = encoder()
    x[3, 0] = torch.nan
    for find in WAYS:
        values = find(x, W, b, 4)[1].view(40, 4)
        assert bool(values[3].isnan().all())
        assert bool(values[[0, 1, 2, 4]].isfinite().all())


def test_chunks_change_nothing(monkeypatch):
    x, W, b = encoder()
    expected = [find(x, W, b, 6) for find in WAYS]
    monkeypatch.setattr(tops, "CHUNK_BYTES", 7 * 4000)
    for find, (ids, values) in zip(WAYS, expected):
        again = find(x, W, b, 6)
        assert torch.equal(again[0].view(40, 6).sort(1).values, ids.view(40, 6).sort(1).values)
        torch.testing.assert_close(again[1].view(40, 6).sort(1).values, values.view(40, 6).sort(1).values)


# -- candidates from a bf16 product -----------------------------------------------------------------------------------


@BITS
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 30.0]), st.integers(1, 12),
    st.sampled_from([7, 300, 1000, 1031]), st.sampled_from([1.0, 1e-4, 1e4]),
)  # fmt: skip
def test_no_true_latent_escapes(bits, seed, spread, bias, k, n, scale):
    """The same latents as arithmetic in fp64 finds, wherever fp32 could tell: rows of very different lengths, large
    biases, any units."""
    k = min(k, n)
    x, W, b = encoder(n=n, seed=seed, spread=spread, bias=bias)
    x = scale * x
    expected, gap = truth(x, W, b, k)
    certain = gap > 1e-5 * (x.norm(dim=1) * W.norm(dim=1).max() + b.abs().max())
    found = ids_of(largest_of_candidates(x, W, b, k, bits), len(x))
    assert torch.equal(found[certain], expected[certain])


@BITS
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_error_bound_holds_for_every_product(bits, seed, spread, scale):
    x, W, b = encoder(n=640, seed=seed, spread=spread)
    W = scale * W
    row, latent, product, bound, out = NARROW[bits](W, b, 80, 1.0).largest(x, 80)
    exact = (x.double() @ W.double().T + b.double())[row, latent]
    assert len(row) >= 80 * int((~out).sum()) > 0
    assert bool(((exact - product).abs() <= bound).all())
    assert bool((bound < 0.1 * (x.norm(dim=1)[row] * W.norm(dim=1).max() + 0.5)).all()), "a bound that says something"


@BITS
@pytest.mark.parametrize("at", [7, 8, 9])
def test_a_candidate_is_what_the_bound_says(bits, at):
    """Not fewer, which would be wrong, nor every latent of a block, which would be slow: a latent is named where its
    product and its bound reach the k-th of the blocks' largest less theirs."""
    x, W, b = encoder(n=4096, d=256, rows=6, spread=0.3)
    narrow = NARROW[bits](W, b, at, float(x.square().mean().sqrt()))
    row, latent, _, bound, out = narrow.largest(x, at)
    assert not bool(out.any())
    named = torch.zeros(6, 4096, dtype=torch.bool)
    named[row, latent] = True
    exact = x @ W.T + b
    least = exact.topk(at, dim=1).values[:, -1:]
    widest = torch.stack([bound[row == i].max() for i in range(6)])[:, None]
    assert bool(named[exact >= least].all())
    assert not bool(named[exact < least - 4 * widest].any())
    assert at * 6 <= len(row) < 12 * at * 6


@BITS
def test_latents_without_weights_are_found_where_all_others_are_below_0(bits):
    """Their block has no step to speak of, and products there are held as 0."""
    x, W, b = encoder(n=1031)
    W, b = 0.01 * W, b.abs() - 5
    W[[3, 5, 1030]] = 0
    b[[3, 5, 1030]] = torch.tensor([0.0, -0.5, -1.0])
    found = largest_of_candidates(x, W, b, 3, bits)
    assert torch.equal(ids_of(found, 40), torch.tensor([[3, 5, 1030]] * 40))
    b[:] = -1.0
    assert bool((largest_of_candidates(x, W, b, 3, bits)[0] < 1031).all())


@BITS
def test_differences_that_few_bits_cannot_see_are_decided_in_fp32(bits):
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
    assert torch.equal(ids_of(largest_of_candidates(x, W, b, 10, bits, searched), 16), expected)
    assert searched.whole_rows == 16, "more candidates than are worth ranking: done whole"


@BITS
def test_few_candidates_are_ranked_where_products_differ(bits):
    x, W, b = encoder(n=4096, d=256, rows=100)
    searched = Searched()
    found = ids_of(largest_of_candidates(x, W, b, 16, bits, searched), 100)
    assert torch.equal(found, truth(x, W, b, 16)[0])
    assert searched.rows == 100
    assert searched.whole_rows <= 1
    assert 16 * 99 <= searched.candidates < {"bf16": 2, "int8": 6}[bits] * 16 * 100


# -- those above a threshold -------------------------------------------------------------------------------------------


@BITS
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 30.0]),
    st.sampled_from([7, 300, 1000, 1031]), st.sampled_from([1.0, 1e-4, 1e4]), st.sampled_from([0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_nothing_above_its_threshold_escapes(bits, seed, spread, bias, n, scale, quantile, apart):
    """The same latents, row for row, as arithmetic in fp64 finds wherever fp32 could tell; `apart`: how far thresholds
    of latents differ."""
    x, W, b = encoder(n=n, seed=seed, spread=spread, bias=bias)
    x = scale * x
    exact = x.double() @ W.double().T + b.double()
    g = torch.Generator().manual_seed(seed)
    theta = (exact.quantile(quantile) * (1 + apart * torch.randn(n, generator=g).double())).float()
    found = above_of_candidates(x, W, b, theta, bits)
    row = torch.arange(len(x)).repeat_interleave(found.counts)
    named = torch.zeros(len(x), n, dtype=torch.bool)
    named[row, found.ids] = True
    assert int(named.sum()) == len(found.ids), "each once"
    size = x.norm(dim=1).double()[:, None] * W.norm(dim=1).double() + b.double().abs()
    certain = (exact - theta).abs() > 1e-5 * (size + theta.abs())
    assert torch.equal(named[certain], (exact > theta)[certain])
    torch.testing.assert_close(found.values.double(), exact[row, found.ids], rtol=1e-4, atol=1e-5 * float(size.max()))


@BITS
def test_values_and_gradients_above_are_those_of_fp32(bits):
    x, W, b = encoder(n=4096, d=64, rows=100)
    theta = 2.5 + 0.2 * torch.randn(4096, generator=torch.Generator().manual_seed(1))
    for given_theta in (theta, 2.5):
        found = []
        for search in ("fp32", bits):
            leaves = [t.clone().requires_grad_() for t in (x, W, b)]
            z = LinearPre(leaves[0], leaves[1], leaves[2], search).above(given_theta)
            z.values.square().sum().backward()
            found.append([z.dense(), *(t.grad for t in leaves)])
        assert 500 < int((found[0][0] != 0).sum()) < 40000
        for a, c in zip(*found):
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


@BITS
def test_few_are_looked_at_where_few_are_above(bits):
    x, W, b = encoder(n=4096, d=256, rows=100)
    searched, theta = Searched(), torch.full((4096,), 2.7)
    found = above_of_candidates(x, W, b, theta, bits, searched)
    assert len(found.ids) <= searched.candidates < 2.5 * len(found.ids)
    assert (searched.rows, searched.whole_rows) == (100, 0)


@BITS
def test_where_most_is_above_fp32_does_it_all(bits, monkeypatch):
    monkeypatch.setattr(tops, "CHUNK_BYTES", 10 * 4096 * 4)
    x, W, b = encoder(n=4096, d=64)
    searched = Searched()
    found = above_of_candidates(x, W, b, torch.zeros(4096), bits, searched)
    assert int((x @ W.T + b > 0).sum()) == pytest.approx(len(found.ids), abs=2)
    assert (searched.rows, searched.whole_rows) == (searched.rows, searched.rows)
    assert searched.rows < 40, "later chunks are not tried"


@BITS
def test_some_rows_in_fp32_stand_where_they_belong(bits):
    x, W, b = encoder(n=4096, d=64)
    x[[3, 17]] *= 100
    searched, theta = Searched(), torch.full((4096,), 2.7)
    found = above_of_candidates(x, W, b, theta, bits, searched)
    assert searched.whole_rows == 2
    product = x @ W.T + b
    assert found.counts.tolist() == (product > theta).sum(1).tolist()
    row = torch.arange(40).repeat_interleave(found.counts)
    torch.testing.assert_close(found.values, product[row, found.ids], rtol=1e-5, atol=1e-5)


@BITS
def test_nan_hides_nothing_that_is_above(bits):
    """In a row it is above nothing, as in fp32; in a latent it must not hide the others of its block."""
    x, W, b = encoder(n=4096, d=64)
    x[3, 0] = torch.nan
    W[7, 1] = torch.nan
    theta = torch.full((4096,), 2.5)
    found = above_of_candidates(x, W, b, theta, bits)
    assert found.counts.tolist() == (x @ W.T + b > theta).sum(1).tolist()
    assert int(found.counts.sum()) > 0


@BITS
@pytest.mark.parametrize("value", [torch.inf, torch.nan, -torch.inf, 3e38])
@pytest.mark.parametrize("how_many", [1, 400, 2000])
def test_thresholds_that_are_no_number_say_nothing_of_others(bits, value, how_many):
    x, W, b = encoder(n=4096, d=64)
    theta = torch.full((4096,), 3.0)
    if value != -torch.inf or how_many == 1:
        theta[torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:how_many]] = value
    found = above_of_candidates(x, W, b, theta, bits)
    assert found.counts.tolist() == (x @ W.T + b > theta).sum(1).tolist()


@BITS
def test_no_rows(bits):
    x, W, b = encoder()
    assert [len(part) for part in above_of_candidates(x[:0], W, b, torch.zeros(1000), bits)] == [0, 0, 0]


@BITS
def test_one_row_that_is_no_number_costs_the_others_nothing(bits):
    x, W, b = encoder(n=4096, d=256)
    x[3] = torch.nan
    searched = Searched()
    largest_of_candidates(x, W, b, 16, bits, searched)
    assert searched.whole_rows <= 2


@BITS
def test_a_processor_that_rounds_more_coarsely_is_found_out_above_too(bits, monkeypatch):
    x, W, b = encoder(n=4096, d=256)
    right = NARROW[bits].multiply
    monkeypatch.setattr(NARROW[bits], "multiply", lambda *given: (1.1 * right(*given)).to(given[2].dtype))
    with pytest.raises(Imprecise, match=f"a product in {bits} .*--search fp32"):
        above_of_candidates(x, W, b, torch.full((4096,), 2.7), bits)


# -- in both -----------------------------------------------------------------------------------------------------------


def test_values_and_gradients_are_those_of_fp32():
    x, W, b = encoder(n=4096, d=64)
    grads = []
    for search in ("fp32", *NARROW):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        z = LinearPre(leaves[0], leaves[1], leaves[2], search).top(16)
        z.values.square().sum().backward()
        grads.append([z.dense(), *(t.grad for t in leaves)])
    for others in grads[1:]:
        for a, c in zip(grads[0], others):
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


@BITS
@pytest.mark.parametrize("wrong", [1.1, 0.9])
def test_a_processor_that_rounds_more_coarsely_is_found_out(bits, wrong, monkeypatch):
    x, W, b = encoder(n=4096, d=256)
    right = NARROW[bits].multiply
    monkeypatch.setattr(NARROW[bits], "multiply", lambda *given: (wrong * right(*given)).to(given[2].dtype))
    with pytest.raises(Imprecise, match=f"a product in {bits} .*--search fp32"):
        largest_of_candidates(x, W, b, 16, bits)


def test_int8_sums_that_overflow_are_found_out(monkeypatch):
    """Pairs are added in 16 bits where there is no instruction for int8, and cut off at what these hold."""
    right = torch._int_mm

    def saturating(a, c):
        pairs = [right(a[:, i : i + 2].contiguous(), c[i : i + 2]) for i in range(0, a.shape[1], 2)]
        return torch.stack(pairs).clamp(-20000, 20000).sum(0, dtype=torch.int32)

    module.int8_is_exact.cache_clear()
    module.int8_is_exact(64)
    module.int8_is_exact.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    with pytest.raises(Imprecise, match=r"int8 are not exact here.*--search bf16 or fp32"):
        largest_of_candidates(*encoder(), 4, "int8")


def test_a_torch_without_int8_products_says_so(monkeypatch):
    module.int8_is_exact.cache_clear()
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(Imprecise, match=r"does not multiply int8.*--search fp32"):
        largest_of_candidates(*encoder(), 4, "int8")
    module.int8_is_exact.cache_clear()


def test_a_processor_multiplies_int8_only_where_it_says_so_and_does(monkeypatch):
    name = "_is_avx512_vnni_supported" if hasattr(torch.cpu, "_is_avx512_vnni_supported") else "_is_vnni_supported"
    for says, exact, expected in ((True, True, True), (False, True, False), (True, False, False)):
        module.multiplies_int8.cache_clear()
        module.int8_is_exact.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cpu, name, lambda says=says: says, raising=False)
            if not exact:
                patch.delattr(torch, "_int_mm")
            assert module.multiplies_int8() is expected
    module.multiplies_int8.cache_clear()
    module.int8_is_exact.cache_clear()


def test_int8_is_refused_on_a_gpu():
    with pytest.raises(BadInput, match=r"--search int8 is for processors.*--search bf16"):
        NARROW["int8"](torch.empty(8, 4, device="meta"), torch.empty(8, device="meta"), 2, 1.0)


@BITS
def test_rows_that_few_bits_say_nothing_about_take_no_memory(bits):
    """Every latent can be among the k largest: none is gathered, and fp32 decides."""
    x, W, b = torch.ones(3, 8), torch.ones(4096, 8), torch.zeros(4096)
    W[100:105] += 1e-4
    *found, out = NARROW[bits](W, b, 5, 1.0).largest(x, 5)
    assert all(len(part) == 0 for part in found)
    assert out.tolist() == [True] * 3
    searched = Searched()
    ids, _ = largest_of_candidates(x, W, b, 5, bits, searched)
    assert ids.view(3, 5).sort(1).values.tolist() == [[100, 101, 102, 103, 104]] * 3
    assert (searched.whole_rows, searched.candidates) == (3, 0)


@BITS
def test_all_latents_alike(bits):
    x, W, b = torch.ones(3, 8), torch.ones(500, 8), torch.zeros(500)
    ids, values = largest_of_candidates(x, W, b, 5, bits)
    assert values.tolist() == [8.0] * 15
    assert all(len(set(row)) == 5 for row in ids.view(3, 5).tolist())


@BITS
@pytest.mark.parametrize("scale", [1e-30, 1e-26, 1e-24, 1e-22, 1e-20, 1e-18])
def test_lengths_whose_squares_fp32_does_not_hold(bits, scale):
    x, W, b = encoder(n=2048, d=64)
    expected = ids_of(largest(x, scale * W, scale * b, 8), 40)
    assert torch.equal(ids_of(largest_of_candidates(x, scale * W, scale * b, 8, bits), 40), expected)


@BITS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_of_other_sizes(bits, dtype):
    x, W, b = (t.to(dtype) for t in encoder(n=2048, d=64))
    expected, found = (ids_of(f, 40) for f in (largest(x, W, b, 8), largest_of_candidates(x, W, b, 8, bits)))
    assert torch.equal(found, expected)


@BITS
def test_nothing_but_zeros(bits):
    ids, values = largest_of_candidates(torch.zeros(3, 8), torch.zeros(500, 8), torch.zeros(500), 5, bits)
    assert values.tolist() == [0.0] * 15
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
    InBf16(W, b, 4, 1.0).largest(x, 4)
    assert within == [x.device, "done"]
