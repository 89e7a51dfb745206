"""Planted edges: the marks of scores whose mark is known, and graphs of a small program."""

import numpy as np
import pytest
import torch

from understudy.core.records.progress import SILENT
from understudy.organisms import make_organism
from understudy.workflows._exam import edges
from understudy.workflows._exam.edges import PROGRAMS, Pairs, _auroc, _precision, edge_row, edge_rows, pairs_of
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
    random = rows["histogram", "random"].auroc
    assert random.low < 0.5 < random.high
    assert rows["histogram", "co-activation"].precision.value < 0.8


def test_a_lost_edge_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(edges, "INPUTS", 2)
    config = ExamConfig(about="edges", names="histogram", history=tmp_path / "h.jsonl")
    assert exam(config).lost == []
    monkeypatch.setattr(edges, "graph_edges", lambda *given: ({}, set(given[0].truth.names)))
    assert "histogram, edges by graph" in [text.split(":")[0] for text in exam(config).lost]
    assert all(Exam.model_validate_json(line) for line in (tmp_path / "h.jsonl").read_text().splitlines())


def test_the_programs_are_the_papers():
    assert _chosen(ExamConfig(about="edges")) == list(PROGRAMS)
