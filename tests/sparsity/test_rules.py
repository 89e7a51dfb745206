import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import latents
from understudy.core.latents import LinearPre
from understudy.core.linear import matching_thresholds
from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.core.site import Site
from understudy.dictionaries import SAE
from understudy.sparsity import BatchTopK, Identity, Threshold, TopK

N = 20
SITE = Site("a")


def pre(rows=60, seed=0) -> LinearPre:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=g).double() for shape in ((rows, 6), (N, 6), (N,))]
    return LinearPre(*made)


def at_places(p: LinearPre, rows) -> LinearPre:
    return LinearPre(p.x[rows], p.W, p.b)


def test_topk_keeps_k_then_drops_what_is_negative():
    p = LinearPre(torch.eye(2), torch.tensor([[3.0, -3.0], [2.0, -1.0], [1.0, 4.0]]), torch.zeros(3))
    assert TopK(2)(p).dense().tolist() == [[3, 2, 0], [0, 0, 4]]


def test_batch_topk_keeps_k_a_place_on_average_and_shares_them_unevenly():
    z = BatchTopK(3)(pre())
    assert len(z.values) == 3 * 60
    assert z.l0().unique().numel() > 2
    everything = (pre().x @ pre().W.T + pre().b).flatten()
    assert z.values.min() == everything.sort(descending=True).values[3 * 60 - 1]


def test_batch_topk_keeps_only_positive_values():
    p = LinearPre(torch.eye(2), torch.tensor([[3.0, -3.0], [-2.0, -1.0], [-1.0, 4.0]]), torch.zeros(3))
    assert BatchTopK(2)(p).dense().tolist() == [[3, 0, 0], [0, 0, 4]]


def test_identity_keeps_signs_and_threshold_is_strict():
    p = LinearPre(torch.eye(1), torch.tensor([[1.0], [-2.0]]), torch.zeros(2))
    assert Identity()(p).dense().tolist() == [[1, -2]]
    assert Threshold(torch.tensor([1.0, -3.0]))(p).dense().tolist() == [[0, -2]]


@pytest.mark.parametrize("rule", [TopK, BatchTopK])
def test_k_below_1_is_refused(rule):
    with pytest.raises(BadInput, match="k must be at least 1"):
        rule(0)


def test_more_than_there_are_is_refused():
    with pytest.raises(BadInput, match="k=21 is more than the 20 latents there are"):
        TopK(21)(pre())


@pytest.mark.parametrize("rule", [TopK(2), BatchTopK(2)])
def test_rules_under_which_latents_compete_cannot_be_restricted(rule):
    with pytest.raises(UnderstudyError, match=r"lets latents compete.*thresholded\(acts\)"):
        rule.restrict(torch.arange(3))


def test_thresholds_follow_their_latents():
    rule = Threshold(torch.arange(5.0))
    assert rule.restrict(torch.tensor([4, 1])).theta.tolist() == [4, 1]
    assert rule.scaled(torch.tensor(2.0)).theta.tolist() == [0, 2, 4, 6, 8]
    assert set(rule.state_dict()) == {"theta"}


# -- matching thresholds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [TopK(3), TopK(N), BatchTopK(3)], ids=["topk", "topk all", "batch_topk"])
def test_each_latent_fires_exactly_as_often_as_under_its_rule(rule):
    kept = rule(pre()).fires()
    theta = matching_thresholds(pre(), kept)
    assert bool((theta >= 0).all())
    assert torch.equal(Threshold(theta)(pre()).fires(), kept)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, N), st.integers(1, 40))
def test_counts_agree_whatever_the_data(seed, k, rows):
    p = pre(rows, seed)
    kept = TopK(k)(p).fires()
    assert torch.equal(Threshold(matching_thresholds(p, kept))(p).fires(), kept)


def test_latents_never_kept_stay_silent_and_those_always_kept_stay_on():
    W = torch.tensor([[1.0], [0.1], [-1.0]])
    p = LinearPre(torch.tensor([[1.0], [2.0]]), W, torch.zeros(3))
    theta = matching_thresholds(p, TopK(1)(p).fires())
    assert Threshold(theta)(p).fires().tolist() == [2, 0, 0]
    assert theta[1] > 0.2


def test_thresholds_lie_half_way():
    p = LinearPre(torch.tensor([[1.0], [2.0], [5.0]]), torch.ones(1, 1), torch.zeros(1))
    assert matching_thresholds(p, torch.tensor([1])).tolist() == [3.5]
    assert matching_thresholds(p, torch.tensor([2])).tolist() == [1.5]


def test_the_order_of_places_and_the_size_of_chunks_do_not_matter(monkeypatch):
    p, order = pre(), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    kept = TopK(3)(p).fires()
    theta = matching_thresholds(p, kept)
    torch.testing.assert_close(matching_thresholds(at_places(p, order), kept), theta)
    monkeypatch.setattr(latents, "CHUNK_BYTES", 1000)
    torch.testing.assert_close(matching_thresholds(p, kept), theta)


def test_a_thresholded_dictionary_reads_each_place_alone():
    """BatchTopK lets the batch decide; its thresholds do not."""
    x = {SITE: torch.randn(64, 6, generator=torch.Generator().manual_seed(0))}
    sae = SAE.start([SITE], [SITE], N, BatchTopK(3), x, 0)
    fitted = sae.thresholded(x)
    assert fitted.thresholded(x) is fitted
    whole, order = fitted.encode(x).z.dense(), torch.randperm(64)
    torch.testing.assert_close(fitted.encode({SITE: x[SITE][order]}).z.dense(), whole[order])
    one = torch.cat([fitted.encode({SITE: row[None]}).z.dense() for row in x[SITE]])
    torch.testing.assert_close(one, whole)
    assert torch.equal(fitted.encode(x).z.fires(), sae.encode(x).z.fires())
    assert not torch.allclose(sae.encode({SITE: x[SITE][:8]}).z.dense(), sae.encode(x).z.dense()[:8])
