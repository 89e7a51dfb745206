import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from understudy.core import latents, pattern, top
from understudy.core.latents import Latents, LinearPre, Pattern
from understudy.core.records.errors import TooLarge, WrongShape

L, D = 7, 4
RAGGED = [2, 0, 3, 1, 0]
"""Latents kept at each of five places."""


WAYS = ["fused", "gathered", "dense"]
"""To take dot products of kept pairs."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def take_dots(way: str, patch: pytest.MonkeyPatch) -> None:
    """From here on as told, whatever would be the fastest."""
    patch.setattr(pattern, "FUSED_SHARE", 10**9 if way == "dense" else 0)
    if way == "gathered":
        patch.setattr(pattern, "_dot_fused", pattern._dot_gathered)


def ragged(counts=RAGGED, n_latents=L, signed=True) -> Latents:
    ids = [torch.randperm(n_latents)[:c] for c in counts]
    values = torch.randn(sum(counts), dtype=torch.float64)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    ids = torch.cat([torch.zeros(0, dtype=torch.long), *ids])
    return Latents(values if signed else values.abs(), Pattern(ids, offsets, n_latents), (len(counts),))


def pre(rows=5, n_latents=L, grad=True) -> LinearPre:
    made = [torch.randn(*s, dtype=torch.float64) for s in ((rows, D), (n_latents, D), (n_latents,))]
    return LinearPre(*(t.requires_grad_(grad) for t in made))


def dense_of(p: LinearPre) -> torch.Tensor:
    return (p.x @ p.W.T + p.b).detach()


@st.composite
def sparse(draw, places=(2, 3), n_latents=5) -> Latents:
    """Few values on purpose, so that two of them often agree."""
    entries = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.5, 2.0]), min_size=30, max_size=30))
    return Latents.from_dense(torch.tensor(entries, dtype=torch.float64).reshape(*places, n_latents))


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("counts", [RAGGED, [0, 0], [], [7, 7]], ids=["ragged", "empty rows", "no rows", "full"])
def test_decode_has_complete_gradients(counts, way, monkeypatch):
    take_dots(way, monkeypatch)
    z, W = ragged(counts), torch.randn(L, D, dtype=torch.float64, requires_grad=True)
    values = z.values.requires_grad_()
    assert gradcheck(lambda v, w: z.with_values(v).decode(w), (values, W))
    torch.testing.assert_close(z.decode(W), z.dense() @ W)


@pytest.mark.parametrize("rows", [5, 0])
@pytest.mark.parametrize("among", [None, torch.tensor([5, 0, 3])], ids=["all", "among"])
def test_top_has_complete_gradients(rows, among):
    p = pre(rows)
    inputs = (p.x, p.W, p.b)
    assert gradcheck(lambda x, W, b: LinearPre(x, W, b).top(2, among).values, inputs)


@pytest.mark.parametrize("rows", [5, 0])
def test_above_has_complete_gradients(rows):
    p = pre(rows)
    assert gradcheck(lambda x, W, b: LinearPre(x, W, b).above(0.3).values, (p.x, p.W, p.b))
    assert gradcheck(lambda x, W, b: LinearPre(x, W, b).above(1e9).values, (p.x, p.W, p.b))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("counts", [RAGGED, [0] * 5])
def test_at_has_complete_gradients(counts, way, monkeypatch):
    take_dots(way, monkeypatch)
    p, z = pre(), ragged(counts)
    assert gradcheck(lambda x, W, b: LinearPre(x, W, b).at(z), (p.x, p.W, p.b))
    torch.testing.assert_close(p.at(z).detach(), dense_of(p)[z.rows, z.ids])


def test_values_of_encode_then_decode_are_those_of_dense_algebra():
    """The whole chain x -> top -> relu -> decode against autograd on dense tensors."""
    p, W = pre(rows=6), torch.randn(L, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, D, dtype=torch.float64)
    z = p.top(3)
    loss = (z.with_values(z.values.relu()).decode(W) * weight).sum()
    sparse_grads = torch.autograd.grad(loss, (p.x, p.W, p.b, W))
    full = p.x @ p.W.T + p.b
    kept = torch.zeros_like(full).scatter(1, full.topk(3).indices, 1.0)
    dense_grads = torch.autograd.grad((((full * kept).relu() @ W) * weight).sum(), (p.x, p.W, p.b, W))
    for a, b in zip(sparse_grads, dense_grads):
        torch.testing.assert_close(a, b)


def test_detached_stops_gradients_to_the_input_only():
    x, W, b = (t.detach().requires_grad_() for t in (pre().x, pre().W, pre().b))
    LinearPre(x, W, b).detached().top(2).values.sum().backward()
    assert x.grad is None
    assert W.grad.abs().sum() > 0
    assert b.grad.sum() == 10


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_top_keeps_the_largest_and_their_sign():
    p = LinearPre(torch.eye(2), torch.tensor([[1.0, -3.0], [2.0, -1.0], [3.0, -2.0]]), torch.zeros(3))
    assert p.top(2).dense().tolist() == [[0, 2, 3], [0, -1, -2]]
    assert p.top(1, among=torch.tensor([0, 1])).dense().tolist() == [[0, 2, 0], [0, -1, 0]]
    assert p.top(9).l0().tolist() == [3, 3]
    assert p.top(0).l0().tolist() == [0, 0]


def test_above_is_strict_and_takes_a_threshold_for_each_latent():
    p = LinearPre(torch.eye(2), torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]), torch.zeros(3))
    assert p.above(3.0).dense().tolist() == [[0, 0, 0], [4, 5, 6]]
    assert p.above(torch.tensor([0.0, 2.0, 6.0])).dense().tolist() == [[1, 0, 0], [4, 5, 0]]


def test_places_keep_their_shape():
    x = torch.randn(2, 3, D)
    p = LinearPre(x, torch.randn(L, D), torch.zeros(L))
    for z in (p.top(2), p.above(0.0), p.detached().top(2)):
        assert z.shape == (2, 3)
        assert z.dense().shape == (2, 3, L)
        assert z.decode(torch.randn(L, 9)).shape == (2, 3, 9)


def test_small_chunks_change_nothing(monkeypatch):
    p, z, W = pre(rows=11), ragged([3, 0, 7, 1, 2, 0, 7, 4, 4, 1, 0]), torch.randn(L, D, dtype=torch.float64)

    def everything():
        chosen = (p.top(3), p.top(2, torch.tensor([6, 1, 4])), p.above(0.2), p.above(-torch.inf))
        picked = [c.keep(torch.ones(L, dtype=torch.bool)) for c in chosen]
        grads = torch.autograd.grad(sum(c.values.square().sum() for c in chosen), (p.x, p.W, p.b))
        return [c.dense() for c in picked], [*grads, p.at(z), z.decode(W)]

    whole, floats = everything()
    for size in (1, 100, 8 * L * 3):
        for module in (latents, pattern, top):
            monkeypatch.setattr(module, "CHUNK_BYTES", size)
        for way in WAYS:
            with monkeypatch.context() as patch:
                take_dots(way, patch)
                again, floats_again = everything()
            for a, b in zip([*whole, *floats], [*again, *floats_again]):
                torch.testing.assert_close(a, b)


def test_places_do_not_see_each_other():
    """Permuting places permutes the latents, and splitting a batch changes nothing: values and gradients alike."""
    p, order = pre(rows=8, n_latents=40), torch.randperm(8)
    weight = torch.randn(8, 40, dtype=torch.float64)

    def look(x, weight):
        z = LinearPre(x, p.W, p.b).top(3)
        return z.dense(), torch.autograd.grad((z.dense() * weight).sum(), p.W)[0]

    dense, grad = look(p.x, weight)
    shuffled, grad_shuffled = look(p.x[order], weight[order])
    torch.testing.assert_close(shuffled, dense[order])
    torch.testing.assert_close(grad_shuffled, grad)
    halves = [look(p.x[s], weight[s]) for s in (slice(0, 5), slice(5, 8))]
    torch.testing.assert_close(torch.cat([d for d, _ in halves]), dense)
    torch.testing.assert_close(halves[0][1] + halves[1][1], grad)


# -- patterns ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, L), max_size=6), st.integers(0, 1000))
def test_all_ways_to_take_dot_products_agree(counts, seed):
    torch.manual_seed(seed)
    kept = ragged(counts).pattern
    left, right = torch.randn(len(counts), D, dtype=torch.float64), torch.randn(L, D, dtype=torch.float64)
    expected = (left @ right.T)[kept.rows, kept.ids]
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            take_dots(way, patch)
            torch.testing.assert_close(kept.dot(left, right), expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, L), max_size=6), st.integers(0, 1000))
def test_scatter_is_gather_transposed(counts, seed):
    torch.manual_seed(seed)
    z = ragged(counts)
    by_row, by_latent = torch.randn(len(counts), D).double(), torch.randn(L, D).double()
    torch.testing.assert_close(z.pattern.scatter_sum(z.values, by_row), z.dense().T @ by_row)
    torch.testing.assert_close(z.pattern.gather_sum(z.values, by_latent), z.dense() @ by_latent)


@pytest.mark.parametrize("n_latents", [1 << 16, (1 << 16) + 1, 200_000])
def test_more_latents_than_sixteen_bits_count(n_latents):
    ids = torch.tensor([n_latents - 1, 0, 65_535, 3, n_latents - 1, 0])
    pattern = Pattern(ids, torch.tensor([0, 2, 2, 5, 6]), n_latents)
    order, rows, offsets = pattern.by_latent
    assert torch.equal(order, torch.argsort(ids, stable=True))
    assert torch.equal(ids[order], ids.sort().values)
    assert torch.equal(rows, torch.tensor([0, 0, 2, 2, 2, 3])[order])
    assert offsets[0] == 0
    assert offsets[-1] == 6
    table = torch.randn(4, 3, dtype=torch.float64)
    out = pattern.scatter_sum(torch.ones(6, dtype=torch.float64), table)
    torch.testing.assert_close(out[0], table[0] + table[3])
    torch.testing.assert_close(out[n_latents - 1], table[0] + table[2] + (table[2] if n_latents == 1 << 16 else 0))


# -- reading and writing ----------------------------------------------------------------------------------------------


def test_known_answers():
    z = Latents.from_dense(torch.tensor([[[0.0, 2.0, 0.0], [1.0, 0.0, -3.0]], [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]]]))
    assert z.shape == (2, 2)
    assert z.ids.tolist() == [1, 0, 2, 1]
    assert z.offsets.tolist() == [0, 1, 3, 3, 4]
    assert z.rows.tolist() == [0, 1, 1, 3]
    assert z.l0().tolist() == [[1, 2], [0, 1]]
    assert z.fires().tolist() == [1, 2, 1]
    assert z.fires(torch.tensor([[True, False], [True, True]])).tolist() == [0, 2, 0]
    assert z.decode(torch.tensor([[1.0], [10.0], [100.0]])).tolist() == [[[20], [-299]], [[0], [40]]]
    kept = z.keep(torch.tensor([True, False, True]))
    assert kept.dense().tolist() == [[[0, 0, 0], [1, 0, -3]], [[0, 0, 0], [0, 0, 0]]]
    assert z.keep(z.values > 1.5, by="occurrence").dense().sum() == 6
    assert repr(z) == "Latents(places=(2, 2), n_latents=3, mean l0=1.0)"


def test_a_kept_value_of_0_does_not_count_as_on():
    z = Latents(torch.tensor([0.0, 5.0]), Pattern(torch.tensor([0, 1]), torch.tensor([0, 2]), 2), (1,))
    assert z.l0().tolist() == [1]
    assert z.fires().tolist() == [0, 1]


def test_no_latents_at_all():
    z = Latents.none((2, 3), torch.zeros(1), 4)
    assert z.dense().shape == (2, 3, 4)
    assert z.l0().sum() == 0
    assert z.decode(torch.ones(4, 2)).tolist() == torch.zeros(2, 3, 2).tolist()
    assert len(z.minus(z).values) == 0
    assert z.put(torch.tensor([5]), torch.tensor([2]), torch.tensor([7.0])).dense()[1, 2, 2] == 7
    assert repr(Latents.none((0,), torch.zeros(1))) == "Latents(places=(0,), n_latents=0, mean l0=0.0)"


def test_put_sets_active_and_inactive_latents_and_the_last_wins():
    z = Latents.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    row, ids = torch.tensor([0, 0, 1, 0]), torch.tensor([1, 0, 1, 1])
    assert z.put(row, ids, torch.tensor([5.0, 6.0, 7.0, 8.0])).dense().tolist() == [[6, 8], [3, 7]]


def test_gates_follow_their_occurrences():
    z = Latents.from_dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    z = Latents(z.values, z.pattern, z.shape, gate=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert z.keep(torch.tensor([False, True])).gate.tolist() == pytest.approx([0.2, 0.4])


def test_put_and_minus_pass_gradients_through():
    z, w = ragged(), torch.randn(5, L, dtype=torch.float64)
    row, ids = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 3])
    new = torch.randn(3, dtype=torch.float64, requires_grad=True)
    values = z.values.requires_grad_()
    assert gradcheck(lambda v, n: (z.with_values(v).put(row, ids, n).dense() * w).sum(), (values, new))
    other = ragged([1, 1, 1, 1, 1])
    assert gradcheck(lambda v: (z.with_values(v).minus(other).dense() * w).sum(), (values,))


@settings(max_examples=25, deadline=None)
@given(sparse(), sparse())
def test_minus_is_the_dense_difference_and_keeps_nothing_that_cancels(a, b):
    difference = a.minus(b)
    torch.testing.assert_close(difference.dense(), a.dense() - b.dense())
    assert bool((difference.values != 0).all())
    assert len(a.minus(a).values) == 0
    back = b.put(difference.rows, difference.ids, (a.dense().reshape(6, 5))[difference.rows, difference.ids])
    torch.testing.assert_close(back.dense(), a.dense())


@settings(max_examples=25, deadline=None)
@given(sparse(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.floats(-9, 9)), max_size=8))
def test_what_was_put_is_read(z, entries):
    expected = z.dense().reshape(6, 5).clone()
    for row, latent, value in entries:
        expected[row, latent] = value
    row, ids, values = ([e[i] for e in entries] for i in range(3))
    out = z.put(torch.tensor(row).long(), torch.tensor(ids).long(), torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(out.dense().reshape(6, 5), expected)
    assert out.shape == z.shape


@settings(max_examples=20, deadline=None)
@given(sparse(), st.lists(st.booleans(), min_size=5, max_size=5))
def test_keeping_some_and_the_others_adds_up(z, mask):
    mask = torch.tensor(mask)
    some, others = z.keep(mask), z.keep(~mask)
    torch.testing.assert_close(some.dense() + others.dense(), z.dense())
    assert torch.equal(some.l0() + others.l0(), z.l0())
    assert torch.equal(some.fires(), z.fires() * mask)
    assert torch.equal(z.fires(), (z.dense() != 0).reshape(6, 5).sum(0))
    assert torch.equal(z.l0(), (z.dense() != 0).sum(-1))


def test_a_dense_tensor_beyond_the_limit_is_refused_before_it_is_made():
    z = Latents.none((1 << 20,), torch.zeros(1), 1 << 20)
    with pytest.raises(TooLarge, match=r"\(1048576, 1048576\) need 4096.0 GiB, above the limit of 1.0 GiB"):
        z.dense()
    with pytest.raises(TooLarge):
        ragged().dense(max_bytes=5 * L * 8 - 1)
    assert ragged().dense(max_bytes=5 * L * 8).shape == (5, L)


def test_rows_that_do_not_fill_the_places_are_refused():
    with pytest.raises(WrongShape, match=r"5 rows do not fill the places \(2, 3\)"):
        Latents(ragged().values, ragged().pattern, (2, 3))


def test_gates_follow_edits_and_differences():
    """What is put there is let through whole; of a difference each entry keeps the gate it had."""
    z = Latents.from_dense(torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]]))
    z = Latents(z.values, z.pattern, z.shape, gate=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    edited = z.put(torch.tensor([0, 0]), torch.tensor([2, 1]), torch.tensor([9.0, 8.0]))
    assert edited.values.tolist() == [1, 8, 9, 3, 4]
    assert edited.gate.tolist() == pytest.approx([0.1, 1, 1, 0.3, 0.4])
    change = edited.minus(z)
    assert change.values.tolist() == [6, 9]
    assert change.gate.tolist() == [1, 1]
    gone = z.keep(torch.tensor([True, False, True])).minus(z)
    assert gone.values.tolist() == [-2, -3]
    assert gone.gate.tolist() == pytest.approx([0.2, 0.3])
    plain = Latents.from_dense(torch.ones(1, 2))
    assert plain.put(torch.tensor([0]), torch.tensor([1]), torch.tensor([2.0])).gate is None
    assert plain.minus(plain).gate is None
