"""Graphs against random graphs on organisms: the marks on cheap ones, chance for a graph that is chosen by chance."""

import pytest
import torch

from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.organisms import ORGANISMS, make_organism
from understudy.workflows._exam import graphs
from understudy.workflows._exam.graphs import GRAPHS, ablation, graph_rows, true_dictionaries
from understudy.workflows._running.ranking import at_random

NOT_BETTER = {
    ("parentheses", 17): "as bad as no latents", ("two_codes", 84): "alike by construction",
    ("two_codes", 72): "alike by construction", ("two_codes", 48): "alike by construction",
    ("false_fact", 256): "stand in for one another", ("misbehaviour_gru", 192): "stand in for one another",
    ("misbehaviour_gru", 128): "stand in for one another", ("superposition_40_10", 19): "",
    ("lookup_or_copy_512", 26): "", ("lookup_or_copy_512", 22): "", ("lookup_or_copy_512", 15): "",
}  # fmt: skip
"""Where a graph is not better, and what the row says of it; "" where the reason is not known."""


def test_every_organism_has_a_graph():
    assert set(GRAPHS) == set(ORGANISMS)


def test_a_reason_is_kept_only_for_organisms_that_need_one():
    assert set(graphs.ALIKE) == {name for (name, _), why in NOT_BETTER.items() if why == "alike by construction"}


@pytest.mark.parametrize("name", ["sort", "histogram", "fraction_previous", "induction"])
def test_a_graph_beats_random_graphs_at_three_sizes(name):
    rows = graph_rows(name, 0, SILENT)
    assert [r.verdict for r in rows] == ["better"] * 3
    assert [r.note for r in rows] == [""] * 3
    for row in rows:
        assert row.than_random.value == pytest.approx(row.random.value - row.graph.value, abs=1e-9)


def test_a_program_runs_on_its_true_features_without_those_that_do_nothing():
    largest = graph_rows("histogram", 0, SILENT)[0]
    assert largest.right.value == 1
    assert largest.graph.value < 1e-6
    assert largest.random.value > 1


def test_a_graph_chosen_by_chance_is_no_better(monkeypatch):
    monkeypatch.setattr(graphs, "by_score", lambda groups, effect: at_random(groups, effect, 999))
    rows = graph_rows("sort", 0, SILENT)
    assert all(r.than_random.value < 0.4 * r.random.value for r in rows)
    assert any(r.verdict != "better" for r in rows)


def test_a_size_that_computes_nothing_says_so():
    rows = graph_rows("parentheses", 0, SILENT)
    assert [r.verdict for r in rows] == ["better", "better", "undecided"]
    assert "as bad as no latents" in rows[2].note


def test_what_one_latent_does_is_measured_by_leaving_it_out():
    world = make_organism("histogram")
    groups, batch = true_dictionaries(world), world.data["train"].batch(slice(0, 8))
    found = ablation(world.network, groups, batch, SILENT)
    member = groups[0].members[0]
    latent = int(found.effect[member].argmax())
    rest = torch.arange(member.n_latents) != latent
    with torch.no_grad():
        output = Replacement(world.network, groups).run(batch, edits={member: lambda z: z.keep(rest)}).output
        own = world.network.forward(batch)
    expected = world.network.divergence(own, output, batch).double().mean()
    assert float(found.effect[member][latent]) == pytest.approx(float(expected))
    silent = found.rate[member] == 0
    assert not found.effect[member][silent].any()


@pytest.mark.long
@pytest.mark.parametrize("name", list(GRAPHS))
def test_on_every_organism(name):
    rows = graph_rows(name, 0, SILENT)
    for row in rows:
        assert isinstance(row.than_random, Measured)
        why = NOT_BETTER.get((name, row.size))
        assert (row.verdict == "better") == (why is None), str(row)
        assert (why or "") in row.note
        assert bool(row.note) == bool(why)
