"""Influence by one sweep equals the sum over all paths; conserved, and indifferent to what must not matter."""

from dataclasses import replace

import pytest
import torch

from tests.graphs import dense, graph_of, layered
from tests.pruning import published
from understudy.core.graph import Graph, Rows
from understudy.core.records.errors import BadData
from understudy.core.records.graph import KINDS
from understudy.pruning import cumulative_share, edge_influence, influence, largest, score_graph
from understudy.pruning import flow as flow_module
from understudy.pruning.flow import blocks, smallest_kept, starts

SEEDS = range(6)


def permuted(graph: Graph, order: torch.Tensor) -> Graph:
    """The same graph with node `order[i]` at i."""
    a = dense(graph)[order][:, order]
    columns = {c: getattr(graph.nodes, c)[order].tolist() for c in ("kind", "dictionary", "latent", "place", "site")}
    return graph_of(a, columns, graph.card, graph.rows.remainder[order])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("biases", [False, True])
def test_the_sweep_equals_all_powers_and_the_inverse(seed, biases):
    graph, a = layered(seed, layers=4, biases=biases)
    m, start = published.shares(a), starts(graph)
    found = influence(graph)
    assert torch.allclose(found, published.influence(m, start), atol=1e-12)
    assert torch.allclose(found, published.by_inverse(m, start), atol=1e-10)
    through = m * (found + start)[:, None]
    edges = edge_influence(graph)
    assert torch.allclose(edges, through[graph.rows.targets, graph.rows.sources.long()], atol=1e-12)


@pytest.mark.parametrize("limit", [1, 7, 1 << 20])
def test_the_size_of_blocks_does_not_matter(limit, monkeypatch):
    graph, _ = layered(1, layers=4)
    whole = influence(graph)
    monkeypatch.setattr(flow_module, "BLOCK", limit)
    assert torch.allclose(influence(graph), whole, atol=1e-14)
    ranges = list(blocks(graph.rows))
    assert sorted(i for first, end in ranges for i in range(first, end)) == list(range(len(graph)))


def test_blocks_hold_no_edge_within_and_are_few():
    graph, _ = layered(0, layers=5)
    ranges = list(blocks(graph.rows))
    for first, end in ranges:
        edges = slice(int(graph.rows.offsets[first]), int(graph.rows.offsets[end]))
        assert not (graph.rows.sources[edges] >= first).any()
    assert len(ranges) <= 5 + 2


def test_nothing_is_lost_on_the_way():
    """What starts at targets ends at inputs, biases, errors or in remainders."""
    graph, _ = layered(3, biases=True, density=1.0)
    scores = influence(graph)
    for kept in (largest(graph, scores, 5), largest(graph, scores, 20), largest(graph, -scores, 7)):
        found = score_graph(graph.keep(kept))
        ends = [found.inputs, found.biases, found.errors, found.remainder]
        assert sum(e.value for e in ends) == pytest.approx(1, abs=1e-6)
        assert all(e.value >= 0 for e in ends)


def test_the_order_of_nodes_within_the_order_of_computation_does_not_matter():
    graph, _ = layered(2, layers=3)
    depth = torch.where(graph.nodes.where("target"), 99, graph.nodes.site.long())
    shuffled = torch.randperm(len(graph), generator=torch.Generator().manual_seed(0))
    order = shuffled[depth[shuffled].argsort(stable=True)]
    assert not torch.equal(order, torch.arange(len(graph)))
    assert torch.allclose(influence(permuted(graph, order)), influence(graph)[order], atol=1e-12)


def test_the_unit_of_a_row_and_signs_do_not_matter():
    graph, _ = layered(4)
    factors = torch.rand(len(graph)) * 100 - 50
    rows = graph.rows
    scaled = replace(
        graph,
        rows=Rows(
            rows.offsets,
            rows.sources,
            rows.weights * factors[rows.targets],
            rows.remainder * factors,
            rows.remainder_abs * factors.abs(),
        ),
    )
    assert torch.allclose(influence(scaled), influence(graph), atol=1e-6)


def test_chains_fans_and_idle_nodes():
    """By hand: t takes 1/4 from a and 3/4 from b, b takes all from a; c leads nowhere."""
    kinds = [KINDS.index(k) for k in ("input", "latent", "latent", "target")]
    a = torch.tensor([[0, 0, 0, 0], [-2.0, 0, 0, 0], [5.0, 0, 0, 0], [1.0, 3.0, 0, 0]], dtype=torch.float64)
    base, _ = layered(0, layers=1, tokens=(" x",), weights=(1.0,))
    columns = {
        "kind": kinds,
        "dictionary": [-1, 0, 0, -1],
        "latent": [-1, 1, 2, 0],
        "place": [0] * 4,
        "site": [0, 1, 1, -1],
    }
    graph = graph_of(a, columns, base.card)
    assert influence(graph).tolist() == [1.0, 0.75, 0.0, 0.0]
    halved = graph_of(a, columns, base.card, remainder=torch.tensor([0, 2.0, 0, -4.0]))
    # t: 1/8 a, 3/8 b, half to its remainder; b: half from a, half to its remainder.
    assert influence(halved).tolist() == [1 / 8 + 3 / 16, 3 / 8, 0.0, 0.0]


def test_edges_that_run_backwards_are_refused():
    graph, _ = layered(0)
    bad = graph.rows.sources.clone()
    bad[-1] = len(graph) - 1
    rows = replace(graph.rows, sources=bad)
    with pytest.raises(BadData, match="order of computation"):
        list(blocks(rows))
    with pytest.raises(BadData, match="runs backwards"):
        replace(graph, rows=rows)


def test_ranks():
    scores = torch.tensor([1.0, 4.0, 0.0, 5.0], dtype=torch.float64)
    assert cumulative_share(scores).tolist() == [1.0, 0.9, 1.0, 0.5]
    assert cumulative_share(scores * 0).tolist() == [0.0] * 4
    assert smallest_kept(scores, 0.5) == 5
    assert smallest_kept(scores, 0.51) == 4
    assert smallest_kept(scores, 0.0) == 5
    assert smallest_kept(scores, 1.0) == 1


def test_an_empty_graph_has_no_influence():
    graph, _ = layered(0)
    none = graph.rows.keep(torch.zeros(graph.n_edges, dtype=torch.bool))
    assert not influence(replace(graph, rows=none)).any()
