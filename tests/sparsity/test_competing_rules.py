"""Multi-TopK, GroupMax and BatchTopK's cut."""

import pytest
import torch

from tests.sparsity.test_rules import pre
from understudy.core import latents
from understudy.core.dictionary import Group
from understudy.core.latents import Encoded, LinearPre
from understudy.core.objective import TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.dictionaries import Transcoder
from understudy.objectives import LocalFVU
from understudy.sparsity import BatchTopK, GroupMax, MultiTopK, TopK
from understudy.sparsity import batch_topk as batch_topk_module

A, B = Site("a"), Site("b")
N, D = 32, 6

# -- Multi-TopK -------------------------------------------------------------------------------------------------------


def one_place(rule) -> tuple[Group, dict]:
    """A transcoder and a single place, at which all pre-activations are positive and differ."""
    g = torch.Generator().manual_seed(0)
    acts = {A: torch.randn(1, D, generator=g), B: torch.randn(1, D, generator=g)}
    arrays = {"W_enc": 0.1 * torch.randn(N, D, generator=g), "b_enc": 2 + torch.rand(N, generator=g)}
    arrays["W_dec"] = torch.randn(N, D, generator=g) / 10
    return Group([Transcoder({A: D}, {B: D}, rule, arrays)]), acts


@pytest.mark.parametrize(("rule", "reaches"), [(TopK(3), 3), (MultiTopK(3), 12), (MultiTopK(3, {"7": 0.5}), 7)])
def test_gradient_reaches_encoder_rows_ranked_after_k(rule, reaches):
    """Golden: under L(k) + L(4k) / 8 the rows ranked k+1 .. 4k learn, and no others."""
    group, acts = one_place(rule)
    (encoded,) = group.encode(acts)
    ranked = encoded.pre.top(N).dense()[0].argsort(descending=True)
    LocalFVU()(group, acts, [encoded], None, TrainingState({B: 1.0})).total.backward()
    learned = group.members[0].W_enc.grad.abs().sum(-1) > 0
    assert learned[ranked].tolist() == [True] * reaches + [False] * (N - reaches)


def test_the_loss_is_that_at_k_plus_an_eighth_of_that_at_4k():
    group, acts = one_place(MultiTopK(3))
    state = TrainingState({B: 1.0})
    loss = LocalFVU()(group, acts, group.encode(acts), None, state)
    alone = []
    for k in (3, 12):
        single = Group([group.members[0].with_sparsity(TopK(k))])
        alone.append(LocalFVU()(single, acts, single.encode(acts), None, state).total.item())
    assert loss.total.item() == pytest.approx(alone[0] + alone[1] / 8)
    assert loss.terms["fvu"].item() == pytest.approx(alone[0])
    assert loss.terms["fvu/k=12"].item() == pytest.approx(alone[1])


def test_the_larger_k_is_clipped_at_the_latents_there_are():
    group, acts = one_place(MultiTopK(20))
    assert group.members[0].also(group.encode(acts)[0])[0].z.l0().item() == N
    with pytest.raises(BadInput, match="weight=-1"):
        MultiTopK(3, {"5": -1.0})
    with pytest.raises(BadInput, match="k must be at least 1"):
        MultiTopK(3, {"0": 1.0})


# -- GroupMax ---------------------------------------------------------------------------------------------------------


def test_groupmax_keeps_the_largest_of_each_group_then_drops_what_is_negative():
    W = torch.tensor([[1.0], [3.0], [2.0], [-5.0], [-4.0], [-6.0]])
    p = LinearPre(torch.tensor([[1.0], [-1.0]]), W, torch.zeros(6))
    assert GroupMax(2)(p).dense().tolist() == [[0, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 6]]
    assert GroupMax(3)(p).dense().tolist() == [[0, 3, 2, 0, 0, 0], [0, 0, 0, 5, 0, 6]]


def test_groupmax_gradients_are_those_of_what_is_kept(monkeypatch):
    p = pre()
    p = LinearPre(p.x, p.W.requires_grad_(), p.b)
    GroupMax(4)(p).values.square().sum().backward()
    full = p.x @ p.W.T + p.b
    best = full.unflatten(1, (4, 5))
    expected = torch.autograd.grad(best.max(-1).values.relu().square().sum(), p.W)[0]
    torch.testing.assert_close(p.W.grad, expected)
    monkeypatch.setattr(latents, "CHUNK_BYTES", 1000)
    assert torch.equal(GroupMax(4)(pre()).dense(), GroupMax(4)(p).dense().detach())


@pytest.mark.parametrize("k", [3, 7, 21])
def test_groups_that_do_not_make_up_all_latents_are_refused(k):
    with pytest.raises(BadInput, match=rf"k={k}"):
        GroupMax.start(n_latents=20, k=k)
    with pytest.raises(BadInput, match=f"20 latents do not fall into {k} groups of one size"):
        GroupMax(k)(pre())


# -- BatchTopK --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [160, 1000, 1 << 20])
@pytest.mark.parametrize("k", [1, 3, 10, 20])
def test_the_cut_is_that_of_a_full_sort_whatever_the_blocks(k, chunk_bytes, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK_BYTES", chunk_bytes)
    p = pre()
    positive = (p.x @ p.W.T + p.b).flatten()
    positive = positive[positive > 0].sort(descending=True).values
    wanted = 60 * k
    expected = 0.0 if wanted >= len(positive) else float(positive[wanted - 1 : wanted + 1].mean())
    assert BatchTopK(k)._most(p)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("average", [0.0, 0.3, 1.0, 1.2, 1.5, 30.0])
@pytest.mark.parametrize("k", [1, 3, 10, 20])
def test_what_is_kept_is_the_same_whatever_the_average_so_far(k, average):
    """It only says where to look first: too low looks at more, too high at all again."""
    p = pre()
    cut, z = BatchTopK(k)._most(p)
    rule = BatchTopK(k)
    rule.average = torch.tensor([average * (cut or 0.1), 1.0])
    again, kept = rule._most(p)
    assert again == cut
    assert torch.equal(kept.dense(), z.dense())


@pytest.mark.parametrize("search", ["bf16", "int8"])
def test_ties_at_the_cut_are_dropped_however_they_are_summed(search):
    """2,000 latents alike, 9 places, k = 1: none is above the cut, by any arithmetic of the same values."""
    g = torch.Generator().manual_seed(424)
    x, w = torch.randn(9, 24, generator=g), torch.randn(1, 24, generator=g)
    p = LinearPre(x, w.expand(2000, 24).contiguous(), torch.zeros(2000), search)
    assert len(BatchTopK(1)(p).values) in (0, 9)


@pytest.mark.parametrize("search", ["bf16", "int8"])
def test_candidates_of_few_bits_train_the_same(search):
    """Values, cuts and gradients, over batches whose cuts drift."""
    made = []
    for asked in ("fp32", search):
        rule, found = BatchTopK(4), []
        for i in range(6):
            p = pre(rows=200, seed=i)
            x, W = ((1 + 0.1 * i) * p.x).requires_grad_(), p.W.clone().requires_grad_()
            z = rule(LinearPre(x, W, p.b, asked))
            z.values.square().sum().backward()
            rule.after_step()
            found += [z.dense().detach(), x.grad, W.grad, rule.average.clone()]
        made.append(found)
    for a, b in zip(*made):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_cut_never_holds_more_than_it_keeps_and_one_block(monkeypatch):
    monkeypatch.setattr(latents, "CHUNK_BYTES", 8 * 20 * 2)  # blocks of 2 rows of 20 latents
    sizes, cat = [], torch.cat
    monkeypatch.setattr(
        batch_topk_module.torch, "cat", lambda tensors: sizes.append(sum(map(len, tensors))) or cat(tensors)
    )
    BatchTopK(1)._cut(pre(rows=60), 60)
    assert len(sizes) == 29
    assert max(sizes) <= 60 + 1 + 40


def test_equal_values_at_the_cut_are_no_trouble():
    p = LinearPre(torch.ones(6, 1), torch.ones(4, 1), torch.zeros(4))
    assert len(BatchTopK(2)(p).values) in (0, 24)


def test_in_use_it_keeps_what_exceeds_the_mean_cut_of_the_batches_it_was_trained_on():
    rule = BatchTopK(3)
    assert rule.cut is None
    rule(pre(seed=1))
    assert rule.cut is None, "a batch counts once it was learned from"
    rule.after_step()
    cuts = [BatchTopK(3)._most(pre(seed=1))[0]]
    assert rule.cut == pytest.approx(cuts[0], rel=1e-6), "unbiased from the first batch on"
    for seed in range(2, 6):
        rule(pre(seed=seed))
        rule.after_step()
        cuts.append(BatchTopK(3)._most(pre(seed=seed))[0])
    weights = [0.99 ** (len(cuts) - 1 - i) for i in range(len(cuts))]
    expected = sum(w * c for w, c in zip(weights, cuts)) / sum(weights)
    assert rule.cut == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        rule(pre(seed=9))
    rule.after_step()
    assert rule.cut == pytest.approx(expected, rel=1e-6), "looking does not train"
    whole = rule.eval()(pre(seed=7)).dense()
    one = torch.cat([rule(LinearPre(row[None], pre(seed=7).W, pre(seed=7).b)).dense() for row in pre(seed=7).x])
    torch.testing.assert_close(whole, one)  # places do not interact
    assert set(rule.state_dict()) == {"average"}


def test_encoded_is_what_penalties_read():
    """A rule without a penalty adds nothing, whatever it is given."""
    p = pre()
    assert TopK(3).penalty(Encoded(TopK(3)(p), p), lambda: 1 / 0, None, 1.0) == {}
    assert TopK(3).also(Encoded(TopK(3)(p), p)) == []
