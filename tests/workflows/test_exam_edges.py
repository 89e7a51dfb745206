"""Planted edges: the marks of scores whose mark is known, and graphs of a small program."""

import numpy as np
import pytest
import torch

from understudy.core.records.errors import BadInput
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.organisms import make_organism
from understudy.workflows._exam import edges
from understudy.workflows._exam.edges import (
    PROGRAMS,
    Edges,
    Pairs,
    _auroc,
    _precision,
    edge_row,
    edge_rows,
    graph_edges,
    pairs_of,
    permuted_row,
    twin_row,
)
from understudy.workflows.exam import Exam, ExamConfig, _chosen, exam


def test_auroc_and_precision_by_hand():
    planted = np.array([True, True, False, False])
    assert _auroc(np.array([4.0, 3.0, 2.0, 1.0]), planted) == 1
    assert _auroc(np.array([1.0, 2.0, 3.0, 4.0]), planted) == 0
    assert _auroc(np.zeros(4), planted) == 0.5
    assert _auroc(np.array([4.0, 2.0, 3.0, 1.0]), planted) == 0.75
    assert _precision(np.array([4.0, 2.0, 3.0, 1.0]), planted) == 0.5
    assert _precision(np.zeros(4), planted) == 0.5, "ties share the room"
    assert _precision(np.array([4.0, 1.0, 1.0, 1.0]), planted) == pytest.approx((1 + 1 / 3) / 2)


def test_random_scores_are_at_chance_within_the_interval():
    planted = torch.rand(2000, generator=torch.Generator().manual_seed(99)) < 0.05
    pairs = Pairs([(f"a{i}", f"b{i % 40}") for i in range(2000)], planted)
    inside = 0
    for seed in range(20):
        score = torch.rand(2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        row = edge_row("x", "random", score, pairs, seed)
        assert abs(row.auroc.value - 0.5) < 0.15
        inside += row.auroc.low <= 0.5 <= row.auroc.high
    assert inside >= 16


def test_the_pairs_are_those_that_the_order_allows_and_the_planted_ones_are_among_them():
    world = make_organism("histogram")
    pairs = pairs_of(world, set(world.truth.names))
    assert int(pairs.planted.sum()) == len(world.truth.contract(world.truth.names))
    site = {f.name: f.site for f in world.truth.features}
    assert all(site[a] != site[b] for a, b in pairs.names)
    order = ("stream", "blocks.0.attn", "blocks.0.mlp.act", "blocks.0.mlp", "unembed")
    assert all(order.index(site[a].module) < order.index(site[b].module) for a, b in pairs.names)
    assert len(set(pairs.names)) == len(pairs.names)


def test_a_graph_finds_the_planted_edges_and_the_controls_do_not(monkeypatch):
    monkeypatch.setattr(edges, "INPUTS", 2)
    rows = {(r.organism, r.method): r for r in edge_rows("histogram", 0, SILENT)}
    assert rows["histogram", "graph"].auroc.value == 1
    assert rows["histogram", "graph"].precision.value == 1
    assert rows["histogram", "graph, what is on"].auroc.value < 1, "edges that hold their target down are never on"
    assert rows["histogram-twin", "graph"].auroc.value < 0.6
    for method in ("permuted", "permuted within targets"):
        null, graph = rows["histogram", method], rows["histogram", "graph"]
        assert null.auroc.low < 0.5 < null.auroc.high < 0.7, "where the same scores lie when they say nothing"
        assert null.precision.high < 0.4
        assert (null.scored, null.pairs) == (graph.scored, graph.pairs)
    assert rows["histogram-twin", "graph"].scored < 0.1 * rows["histogram", "graph"].pairs
    assert rows["histogram", "co-activation"].precision.value < 0.8


def test_permuted_scores_are_at_chance_and_those_that_know_the_targets_keep_what_these_give_away():
    """Planted edges lead to ten targets of forty, and any pair of these scores."""
    names = [(f"a{i}", f"b{i % 40}") for i in range(800)]
    planted = torch.tensor([i % 40 < 10 and i // 40 < 5 for i in range(800)])
    busy = torch.tensor([float(i % 40 < 10) for i in range(800)], dtype=torch.float64)
    pairs = Pairs(names, planted)
    free, kept = (permuted_row("x", busy, pairs, 0, within_targets=w) for w in (False, True))
    assert free.auroc.value == pytest.approx(0.5, abs=0.01)
    assert free.auroc.low < 0.5 < free.auroc.high
    assert free.precision.value == pytest.approx(50 / 800, abs=0.01)
    assert kept.auroc.value == pytest.approx(_auroc(busy.numpy(), planted.numpy())), "a target's scores are all alike"
    assert kept.auroc.low == pytest.approx(kept.auroc.high)
    assert kept.auroc.low > 0.85


def test_inputs_without_a_graph_are_counted_with_the_reason(monkeypatch):
    """Once they were left out without a word."""
    world, real = make_organism("histogram"), edges._graph
    assert world.negative is not None

    def some(studied, groups, n, i, silent):
        if i > 0:
            raise BadInput(f"nothing on input {i} reaches the output")
        return real(studied, groups, n, i, silent)

    monkeypatch.setattr(edges, "INPUTS", 3)
    monkeypatch.setattr(edges, "_graph", some)
    found, pairs = graph_edges(world, world.negative, SILENT), pairs_of(world, set(world.truth.names))
    assert found.failed == ["nothing on input 1 reaches the output", "nothing on input 2 reaches the output"]
    part = twin_row("histogram-twin", found, pairs, 0)
    assert part.note == "2 of 3 inputs have no graph: nothing on input 1 reaches the output"
    assert isinstance(part.auroc, Measured)
    none = twin_row("histogram-twin", Edges({}, set(), found.failed[:1] * 3), pairs, 0)
    assert isinstance(none.auroc, NotMeasured)
    assert "3 of 3 inputs have no graph" in none.auroc.not_measured
    with pytest.raises(BadInput, match="input 1"):
        graph_edges(world, world, SILENT)


def test_a_lost_edge_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(edges, "INPUTS", 2)
    config = ExamConfig(about="edges", names="histogram", history=tmp_path / "h.jsonl")
    assert exam(config).lost == []
    monkeypatch.setattr(edges, "graph_edges", lambda *given: Edges({}, set(given[0].truth.names), []))
    assert "histogram, edges by graph" in [text.split(":")[0] for text in exam(config).lost]
    assert all(Exam.model_validate_json(line) for line in (tmp_path / "h.jsonl").read_text().splitlines())


def test_the_programs_are_the_papers():
    assert _chosen(ExamConfig(about="edges")) == list(PROGRAMS)
