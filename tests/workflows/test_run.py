"""Graphs of a small real run in the network's place: bookkeeping, controls, refusals, and the page."""

import json
import shutil

import numpy as np
import pytest
import torch

from understudy.core.graph import Graph
from understudy.core.network import Network
from understudy.core.records.errors import BadFolder, BadInput
from understudy.core.records.graph_curve import GRAPH, NEURONS, RANDOM, GraphCurve
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.data import Order
from understudy.edits import intervene, restricted
from understudy.edits.graph_groups import own_input
from understudy.web.curve import render
from understudy.workflows._data import open_sequences
from understudy.workflows._running import rows
from understudy.workflows._running.expressed import _Live
from understudy.workflows._running.figures import crossing
from understudy.workflows._running.ranking import by_score, importance
from understudy.workflows.attribute import AttributeConfig, attribute
from understudy.workflows.evaluate import open_run
from understudy.workflows.run import RunConfig, halves, run, sizes


@pytest.fixture(scope="module", autouse=True)
def _fitted_on_less():
    """4096 places to fit on: enough for 128 latents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "FIT_PLACES", 4096)
        yield


@pytest.fixture(scope="module")
def curve(finished) -> GraphCurve:
    path = finished.folder.path
    return run(RunConfig(source=path, nodes="16,128,511", sequences=12, ranking_sequences=12))


def test_every_selection_has_every_size_on_the_same_places(curve):
    found = {(s.selection, s.nodes) for s in curve.sizes}
    assert found == {(name, n) for name in (GRAPH, RANDOM, "top_activation", NEURONS) for n in (16, 128, 511)}
    for size in (*curve.sizes, curve.everything, curve.nothing):
        assert size.loss.value - curve.loss_clean.value == pytest.approx(size.delta_loss.value, abs=1e-9)
        parts = [s for s in size.slices if isinstance(s.delta_loss, Measured)]
        assert sum(s.share for s in size.slices) == pytest.approx(1, abs=1e-9)
        missing = 1 - sum(s.share for s in parts)
        by_parts = sum(s.share * s.delta_loss.value for s in parts)
        assert by_parts == pytest.approx(size.delta_loss.value, abs=0.02 + 12 * missing)
        assert size.l0.value <= size.nodes / 4 + 1e-6 or size is curve.everything
    for size in curve.sizes:
        if size.selection != GRAPH:
            graph = next(s for s in curve.rows(GRAPH) if s.nodes == size.nodes)
            difference = size.loss.value - graph.loss.value
            assert size.against_graph.value == pytest.approx(difference, abs=1e-9)


def test_the_score_runs_from_the_ablation_to_everything(curve):
    assert curve.everything.kept.value == 1.0
    nearly = next(s for s in curve.rows(GRAPH) if s.nodes == 511)
    assert nearly.kept.value == pytest.approx(1, abs=1e-3)
    kept = [s.kept.value for s in curve.rows(GRAPH)]
    assert kept == sorted(kept)


def test_the_graph_beats_chance(curve):
    rival = next(s for s in curve.rows(RANDOM) if s.nodes == 128)
    assert rival.verdict == "worse"
    assert rival.against_graph.low > 0


def test_the_curve_is_kept_and_shown(curve, finished):
    path = finished.folder.file("curve.json")
    assert GraphCurve.model_validate(json.loads(path.read_text())) == curve
    table = str(curve).split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 100
    assert len(table.splitlines()) == 2 + 12 + 2
    page = render(curve)
    assert page.count("<svg") >= 3
    assert "default-src &#x27;none&#x27;" in page or "default-src" in page
    assert "http" not in page.split("</head>")[1]


@pytest.mark.parametrize(("dropped", "gain"), [("mean", 0.0), ("refit", 0.1), ("low_rank", 0.1)])
def test_what_is_dropped_can_be_made_up_for(curve, finished, tmp_path, dropped, gain):
    config = RunConfig(
        source=finished.folder.path, nodes="128", sequences=12, ranking_sequences=12, dropped=dropped, rank=4,
        out=tmp_path / "curve",
    )  # fmt: skip
    treated = run(config)
    zero = next(s for s in curve.rows(GRAPH) if s.nodes == 128)
    (better,) = treated.rows(GRAPH)
    assert better.loss.value < zero.loss.value - gain
    assert treated.everything == curve.everything  # the replacement itself is not treated
    assert treated.pseudo_features == (16 if dropped == "low_rank" else 0)
    assert (tmp_path / "curve" / "curve.json").exists()


def test_the_ranking_measures_what_dropping_costs(finished):
    """To first order: on the last layer, where only the head comes after, |a x g| follows the change in loss."""
    opened = open_run(finished.folder.path)
    network, groups = opened.network, opened.groups
    sequences = open_sequences(network, opened.config.data, "train", opened.config.context)
    picked = Order(len(sequences), 1).stream(0, 4)
    found = importance(network, groups, sequences, picked, SILENT)
    last = groups[-1].members[0]
    ids = found.effect[last].argsort(descending=True)[:30]
    batch = sequences.batch(picked)
    predicted, measured = [], []
    with torch.no_grad():
        base = network.loss(Replacement(network, groups).run(batch).output, batch)
        assert isinstance(base, torch.Tensor)
        for i in ids:
            keep = torch.ones(last.n_latents, dtype=torch.bool)
            keep[i] = False
            out = Replacement(network, groups).run(batch, edits={last: lambda z, keep=keep: z.keep(keep)}).output
            loss = network.loss(out, batch)
            assert isinstance(loss, torch.Tensor)
            predicted.append(float(found.effect[last][i]))
            measured.append(float((loss - base).abs().sum() / batch.mask.sum()))  # pyright: ignore
    assert np.corrcoef(predicted, measured)[0, 1] > 0.9
    silent = found.rate[last] == 0
    assert not found.effect[last][silent].any()
    assert not found.mass[last][silent].any()


def test_a_ranking_keeps_its_best_first(finished):
    groups = open_run(finished.folder.path).groups
    members = [g.members[0] for g in groups]
    scores = {m: torch.zeros(m.n_latents, dtype=torch.float64) for m in members}
    scores[members[2]][7], scores[members[0]][3], scores[members[2]][1] = 3.0, 2.0, 1.0
    kept = by_score(groups, scores).first(3)
    assert [kept[m].tolist() for m in members] == [[3], [], [1, 7], []]
    parts = restricted(groups, kept)
    assert [len(p.members[0].ids) for p in parts] == [1, 0, 2, 0]


def test_the_crossing_lies_between_the_sizes():
    kept = np.array([[0.1, 0.5, 0.9], [0.1, 0.7, 0.8], [0.95, 0.2, 0.9], [0.1, 0.2, 0.3]])
    found = crossing(kept, np.array([10.0, 100.0, 1000.0]), 0.7)
    assert found[0] == pytest.approx(100 * 10**0.5)
    assert found[1] == pytest.approx(100)
    assert found[2] == pytest.approx(10)
    assert np.isnan(found[3])


def test_sizes_are_read_and_refused():
    assert sizes("200, 50,100") == [50, 100, 200]
    assert halves(4096) == [32, 64, 128, 256, 512, 1024, 2048]
    assert halves(3) == [1]
    for text in ("", "a", "0,5", "-3"):
        with pytest.raises(BadInput, match="--nodes"):
            sizes(text)


@pytest.fixture(scope="module")
def graph(finished, tmp_path_factory) -> tuple[Graph, object]:
    out = tmp_path_factory.mktemp("graphs") / "one.acg"
    config = AttributeConfig(run=str(finished.folder.path), input="@1", context=8, check=0, nodes=400, out=out)
    return attribute(config), out


def test_a_graph_runs_on_its_own_input(graph):
    made, path = graph
    curve = run(RunConfig(source=path))
    whole = max(curve.rows(GRAPH), key=lambda s: s.nodes)
    assert whole.nodes == int(made.nodes.where("latent").sum())
    assert whole.kl.value == pytest.approx(curve.everything.kl.value, rel=0.2, abs=1e-3)
    assert curve.everything.kept.value == 1
    assert curve.nothing.kept.value == 0
    assert isinstance(whole.delta_loss, NotMeasured)
    middle = curve.rows(GRAPH)[-3]
    assert middle.kl.value < next(s for s in curve.rows(RANDOM) if s.nodes == middle.nodes).kl.value
    assert "own input" in str(curve)
    assert render(curve)


def test_a_graph_is_evaluated_by_its_own_numbers(graph, finished, tmp_path):
    _, path = graph
    curve = run(RunConfig(source=path, nodes="20,100", expression=True, out=tmp_path / "x"))
    found = curve.expression
    assert found.whole_error < 1e-3
    assert {(r.selection, r.nodes) for r in found.rows if r.selection != GRAPH} == {
        (name, m) for name in (RANDOM, "top_activation") for m in (20, 100)
    }
    rows = {(r.selection, r.nodes): r for r in found.rows}
    whole = max((r for r in found.rows if r.selection == GRAPH), key=lambda r: r.nodes)
    assert whole.error.value < rows[RANDOM, 20].error.value
    assert rows[GRAPH, 100].error.value < rows[RANDOM, 100].error.value
    assert 0.5 < found.mass.value <= 1
    in_place = {(s.selection, s.nodes): s.kl.value for s in curve.sizes}
    for row in found.rows:
        # What is seen among some outputs is at most what is seen among all.
        assert 0 <= found.mass.value * row.kl_in_place.value <= in_place[row.selection, row.nodes] + 1e-6
        assert row.than_linear.value == pytest.approx(row.r2.value - row.r2_linear.value, abs=1e-9)
        assert row.r2.value <= 1
        assert abs(row.rank.value) <= 1
    assert "no block of the network runs" in str(found)
    assert max(map(len, str(found).splitlines())) <= 110
    assert "over the targets alone" in render(curve)
    with pytest.raises(BadInput, match="the edges of one input"):
        run(RunConfig(source=finished.folder.path, expression=True))


def test_edits_of_the_live_network_are_what_interventions_by_name_do(graph, finished):
    made, _ = graph
    batch = own_input(made)
    live = _Live(made, finished.network, finished.groups, batch, 0)
    node = int(live.removed[0])
    name = f"{made.card.dictionaries[int(made.nodes.dictionary[node])].writes[0]}/{int(made.nodes.latent[node])}"
    with torch.no_grad():
        changed = intervene(
            Replacement(finished.network, finished.groups), batch, {f"{name}@{int(made.nodes.place[node])}": 0.0}
        )
    expected = live._scores(changed.output)[0] - live.clean[0]
    torch.testing.assert_close(live.changes[0], expected, atol=1e-4, rtol=1e-3)
    shown = made.nodes.value[live.targets].double()
    torch.testing.assert_close(live.clean[0], shown, atol=1e-3, rtol=1e-4)


def test_the_divergence_among_targets_is_that_of_the_distribution_over_them(graph, finished):
    made, _ = graph
    live = _Live(made, finished.network, finished.groups, own_input(made), 0)
    outputs = [made.card.targets[int(i)].output for i in made.nodes.latent[live.targets]]
    with torch.no_grad():
        p = finished.network.forward(own_input(made)).logits[0, int(live.places[0])].double().softmax(-1)[outputs]
    assert live.mass.value == pytest.approx(float(p.sum()), abs=1e-6)
    assert live._kl(live.clean[0]).value == pytest.approx(0, abs=1e-12)
    assert live._kl(live.clean[0] + 3.0).value == pytest.approx(0, abs=1e-12), "what is added to all changes nothing"
    p = p / p.sum()
    moved = live.clean[0].clone()
    moved[0] += 1.5
    q = p.clone()
    q[0] *= torch.tensor(1.5).double().exp()
    q = q / q.sum()
    assert live._kl(moved).value == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_a_graphs_features_run_on_data(graph, text, tmp_path):
    _, path = graph
    curve = run(
        RunConfig(source=path, data=f"text:{text}", nodes="40", sequences=4, ranking_sequences=2, out=tmp_path / "x")
    )
    assert [s.nodes for s in curve.rows(GRAPH)] == [40]
    assert curve.everything.nodes == 4 * 128
    with pytest.raises(BadInput, match="fits features"):
        run(RunConfig(source=path, dropped="refit"))


def test_a_graph_of_other_weights_is_refused(graph, finished, tmp_path):
    _, path = graph
    copy, other = tmp_path / "copy.acg", tmp_path / "other"
    shutil.copytree(finished.folder.path, other)
    shutil.copytree(path, copy)
    card = json.loads((copy / "graph.json").read_text())
    card["card"]["dictionaries"][1]["fingerprint"] = "0" * 16
    (copy / "graph.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match=r"writes model\.layers\.1\.mlp:out is another"):
        run(RunConfig(source=copy))
    card["card"]["network_fingerprint"] = "0" * 16
    (copy / "graph.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match="other weights"):
        run(RunConfig(source=copy))
    with pytest.raises(BadFolder, match="no graph at"):
        run(RunConfig(source=tmp_path / "none.acg"))


def test_a_graph_over_neurons_needs_no_run(tmp_path, finished):
    network: Network = finished.network
    out = tmp_path / "neurons.acg"
    attribute(AttributeConfig(network="demo", input="return x", check=0, nodes=300, out=out), network=network)
    curve = run(RunConfig(source=out, nodes="50,200"), network=network)
    assert curve.everything.kl.value == pytest.approx(0, abs=1e-6)
    best, rest = curve.rows(GRAPH)[1], next(s for s in curve.rows(RANDOM) if s.nodes == 200)
    assert best.kl.value < rest.kl.value
