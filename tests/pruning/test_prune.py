"""Pruning agrees with the published algorithm on dense graphs; what differs is that nothing is forgotten."""

import pytest
import torch

from tests.graphs import dense, graph_of, layered
from tests.pruning import published
from tests.pruning.published import Kinds
from understudy.core.graph import Graph
from understudy.core.records.errors import BadData
from understudy.core.records.graph import KINDS
from understudy.core.records.metric import NotMeasured
from understudy.pruning import (
    activation,
    influence,
    largest,
    prune,
    prune_by_thresholds,
    random_order,
    same_kinds,
    score_graph,
)
from understudy.pruning.flow import starts
from understudy.pruning.size import always


def kinds_of(graph: Graph) -> Kinds:
    where = graph.nodes.where
    return Kinds(where("latent"), where("error"), always(graph), starts(graph))


def key(graph: Graph) -> list[tuple]:
    """Identities of nodes that survive renumbering."""
    n = graph.nodes
    return list(zip(*(getattr(n, c).tolist() for c in ("kind", "dictionary", "latent", "place", "site"))))


THRESHOLDS = [(0.8, 0.98), (0.5, 0.8), (0.3, 0.5), (0.95, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("nodes", "edges"), THRESHOLDS)
def test_thresholds_keep_what_the_published_algorithm_keeps(seed, nodes, edges):
    graph, a = layered(seed, layers=3, tokens=(" a", " b", " c", " d"))
    kept, links = published.prune(a, kinds_of(graph), nodes, edges)
    found = prune_by_thresholds(graph, nodes, edges)
    names = key(graph)
    assert key(found) == [name for name, k in zip(names, kept) if k]
    ours = {(key(found)[s], key(found)[t]) for s, t in zip(found.rows.sources.tolist(), found.rows.targets.tolist())}
    theirs = {(names[s], names[t]) for t, s in links.nonzero().tolist() if kept[s] and kept[t]}
    assert ours == theirs
    if (nodes, edges) == (0.8, 0.98):
        assert len(found) < len(graph)
        assert found.n_edges < graph.n_edges


def test_ties_stay_or_go_together():
    """Three latents of equal influence: a threshold that needs two of them keeps all three. The input holds half."""
    graph = toy([2.0, 2.0, 2.0, 1.0])
    for share, n in ((0.4, 0), (0.6, 3), (0.7, 3), (0.9, 3), (0.95, 4)):
        found = prune_by_thresholds(graph, share, 1.0)
        kept, _ = published.prune(dense(graph), kinds_of(graph), share, 1.0)
        assert int(kept[graph.nodes.where("latent")].sum()) == int(found.nodes.where("latent").sum()) == n
    assert int(prune(graph, share=0.3).nodes.where("latent").sum()) == 3
    assert int(prune(graph, nodes=2).nodes.where("latent").sum()) == 2, "a number of nodes is kept to"
    assert prune(graph, nodes=2).nodes.latent[1:3].tolist() == [0, 1], "ties go by index"


def toy(weights: list[float]) -> Graph:
    """One input, latents that each read all of it, one target that reads them by `weights`."""
    n = len(weights)
    a = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    a[1 : n + 1, 0] = 1
    a[n + 1, 1 : n + 1] = torch.tensor(weights, dtype=torch.float64)
    kind = [KINDS.index("input"), *[KINDS.index("latent")] * n, KINDS.index("target")]
    base, _ = layered(0, layers=1, tokens=(" x",), weights=(1.0,))
    columns = {
        "kind": kind,
        "dictionary": [-1, *[0] * n, -1],
        "latent": [-1, *range(n), 0],
        "place": [0] * (n + 2),
        "site": [0, *[1] * n, -1],
    }
    return graph_of(a, columns, base.card)


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_the_published_ones_without_remainder(seed):
    graph, a = layered(seed, layers=4)
    replacement, completeness = published.scores(a, kinds_of(graph), graph.nodes.where("input"))
    found = score_graph(graph)
    assert found.replacement.value == pytest.approx(replacement, abs=1e-12)
    assert found.completeness.value == pytest.approx(completeness, abs=1e-12)


def test_forgetting_raises_the_published_score_and_not_ours():
    """By hand. t = 2 f + 1 g + 1 e, f = 3 x + 1 e, g = 1 x + 3 e.

    Whole: x gets 2/4 * 3/4 + 1/4 * 1/4 = 7/16, e the other 9/16. Without g, forgotten: t = 2/3 f + 1/3 e, so x gets
    2/3 * 3/4 = 1/2: the score rose. Without g, kept as remainder: x gets 6/16, e 6/16, the remainder 4/16.
    """
    kinds = [KINDS.index(k) for k in ("input", "error", "latent", "latent", "target")]
    a = torch.zeros(5, 5, dtype=torch.float64)
    a[2, :2] = torch.tensor([3.0, 1.0])
    a[3, :2] = torch.tensor([1.0, 3.0])
    a[4, 1:4] = torch.tensor([1.0, 2.0, 1.0])
    base, _ = layered(0, layers=1, tokens=(" x",), weights=(1.0,))
    columns = {
        "kind": kinds,
        "dictionary": [-1, -1, 0, 0, -1],
        "latent": [-1, -1, 1, 2, 0],
        "place": [0] * 5,
        "site": [0, 1, 1, 1, -1],
    }
    graph = graph_of(a, columns, base.card)
    assert score_graph(graph).replacement.value == pytest.approx(7 / 16)
    kept = torch.tensor([True, True, True, False, True])
    forgotten = a * kept[:, None] * kept[None]
    assert published.scores(forgotten, kinds_of(graph), graph.nodes.where("input"))[0] == pytest.approx(1 / 2)
    folded = score_graph(graph.keep(kept))
    assert folded.replacement.value == pytest.approx(6 / 16)
    assert folded.remainder.value == pytest.approx(4 / 16)
    # (f 1/2 * 3/4 + x, e 6/16 each + t 1 * 1/2) / (1/2 + 6/16 + 6/16 + 1)
    assert folded.completeness.value == pytest.approx((3 / 8 + 6 / 16 + 6 / 16 + 1 / 2) / (9 / 4))


@pytest.mark.parametrize("seed", range(4))
def test_scores_never_rise_and_rows_keep_their_totals(seed):
    graph, _ = layered(seed, layers=4, biases=True)
    before, totals = score_graph(graph).replacement.value, graph.rows.total
    for nodes in (30, 20, 10, 5, 1):
        found = prune(graph, nodes=nodes)
        after = score_graph(found).replacement.value
        assert after <= before + 1e-6
        before = after
        names = {k: i for i, k in enumerate(key(graph))}
        old = torch.tensor([names[k] for k in key(found)])
        assert torch.allclose(found.rows.total, totals[old], atol=1e-5)
        assert torch.allclose(found.rows.mass, graph.rows.mass[old], atol=1e-5)
        further = prune_by_thresholds(found)
        computed = further.nodes.computed
        assert torch.allclose(further.rows.total[computed], further.nodes.value[computed].double(), atol=1e-5)


def test_a_size_is_a_count_of_what_may_go():
    graph, _ = layered(0, layers=4, biases=True)
    found = prune(graph, nodes=10)
    assert len(found) == 10 + int(always(graph).sum())
    assert found.history == ("pruned to the 10 nodes of largest influence",)
    scores = influence(graph)
    ours = prune(graph, nodes=3)
    best = scores[~always(graph)].sort(descending=True).values[:3]
    kept = largest(graph, scores, 3) & ~always(graph)
    assert torch.equal(scores[kept].sort(descending=True).values, best)
    assert len(ours) == int((kept | always(graph)).sum())
    assert len(prune(graph, nodes=10**6)) == len(graph)
    assert prune(graph, nodes=10**6).n_edges == graph.n_edges


def test_keeping_everything_changes_nothing():
    graph, _ = layered(5, layers=2)
    whole = prune(graph, nodes=len(graph))
    assert key(whole) == key(graph)
    for part in ("offsets", "sources", "weights", "remainder", "remainder_abs"):
        assert torch.equal(getattr(whole.rows, part), getattr(graph.rows, part))


def test_rivals_have_as_many_of_each_kind():
    graph, _ = layered(1, layers=4, biases=True)
    kept = largest(graph, influence(graph), 12)
    for scores in (random_order(graph, 0), random_order(graph, 1), activation(graph), -influence(graph)):
        rival = same_kinds(graph, kept, scores)
        for owner in range(-1, 4):
            for kind in KINDS:
                mine = graph.nodes.where(kind) & (graph.nodes.dictionary == owner)
                assert int((mine & rival).sum()) == int((mine & kept).sum()) or kind in ("input", "target")
    assert torch.equal(same_kinds(graph, kept, influence(graph)), same_kinds(graph, kept, influence(graph) * 2))
    assert not torch.equal(random_order(graph, 0), random_order(graph, 1))
    assert torch.equal(random_order(graph, 1), random_order(graph, 1))


def test_random_graphs_hold_their_share_of_influence_and_no_more():
    """The control gives chance: n of N random nodes hold n/N of influence on average; ours hold more."""
    graph, _ = layered(2, layers=4, per_cell=8)
    scores, may_go = influence(graph), ~always(graph)
    n, total = 20, scores[may_go].sum()
    held = [scores[largest(graph, random_order(graph, s), n) & may_go].sum() / total for s in range(400)]
    expected = n / int(may_go.sum())
    assert float(torch.stack(held).mean()) == pytest.approx(expected, rel=0.08)
    assert float(scores[largest(graph, scores, n) & may_go].sum() / total) > 2 * expected


def test_activation_is_zero_for_silent_latents():
    graph, _ = layered(0)
    latents = graph.nodes.where("latent")
    assert torch.equal(activation(graph)[latents], graph.nodes.value[latents].double())
    graph.nodes.threshold.fill_(1e9)
    assert not activation(graph)[latents].any()


def test_requests_that_make_no_sense_are_refused():
    graph, _ = layered(0)
    with pytest.raises(BadData, match="not both or neither"):
        prune(graph)
    with pytest.raises(BadData, match="not both or neither"):
        prune(graph, nodes=3, share=0.5)
    with pytest.raises(BadData, match="keep at least 1"):
        prune(graph, nodes=0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(BadData, match="share of influence"):
            prune(graph, share=share)
    with pytest.raises(BadData, match=r"edges lies between 0 and 1, not at 1\.5"):
        prune_by_thresholds(graph, 0.5, 1.5)
    cut = graph.keep(torch.ones(len(graph), dtype=torch.bool), torch.zeros(graph.n_edges, dtype=torch.bool))
    for how in (lambda: prune(cut, nodes=3), lambda: prune_by_thresholds(cut)):
        with pytest.raises(BadData, match="influences the targets"):
            how()
    assert score_graph(cut).remainder.value == pytest.approx(1)
    assert isinstance(score_graph(toy([0.0])).replacement, NotMeasured)
