"""Dictionaries of others scored on a network: the same card as a run's, from files that stay on disk."""

import json

import pytest
import torch

from tests.formats import files
from understudy.core.dictionary import DictionarySpec
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder, BadInput, UnknownName, WrongShape
from understudy.core.records.metric import Measured
from understudy.core.records.scorecard import Scorecard
from understudy.core.site import Site
from understudy.formats import circuit_tracer
from understudy.networks import open_network
from understudy.workflows._scoring.opening import ScoreConfig, open_groups
from understudy.workflows._scoring.streamed import Streamed
from understudy.workflows.evaluate import EvaluateConfig, evaluate, open_run
from understudy.workflows.export import ExportConfig, export
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.score import score

D = 192


@pytest.fixture(scope="module")
def network():
    return open_network("demo")


def saes(root, layers=(1, 2), n=256, **cfg):
    for i in layers:
        w = files.weights(D, n)
        w["W_dec"] = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True)
        tensors = w | {"W_enc": w["W_dec"].T, "b_enc": 0 * w["b_enc"], "b_dec": 0 * w["b_dec"]}
        files.saelens(root / f"layer_{i}", tensors, f"blocks.{i}.hook_mlp_out", architecture="topk", k=8, **cfg)
    return root


def options(text, tmp_path, **more):
    return {
        "data": f"text:{text}", "context": 32, "sequences": 8, "rollouts": 0, "fit_places": 600,
        "out": tmp_path / "out",
    } | more  # fmt: skip


def test_a_run_that_is_exported_scores_as_the_run_does(finished, text, tmp_path):
    """The whole way round: train, export to each format that can hold it, score the files; every figure agrees."""
    own = evaluate(EvaluateConfig(run=finished.folder.path, sequences=12, rollouts=0, fit_places=600))
    for form in ("saelens", "circuit-tracer"):
        export(ExportConfig(run=finished.folder.path, format=form, out=tmp_path / form))
        more = {"context": finished.config.context, "sequences": 12, "out": tmp_path / f"{form}-scored"}
        card = score("demo", tmp_path / form, **options(text, tmp_path, **more))
        assert card.replaced == own.replaced
        assert card.replacement.delta_loss.value == pytest.approx(own.replacement.delta_loss.value, abs=1e-4)
        assert card.replacement.kl.value == pytest.approx(own.replacement.kl.value, abs=1e-4)
        assert set(card.baselines) == set(own.baselines)
        for ours, theirs in zip(own.dictionaries, card.dictionaries, strict=True):
            assert (theirs.site, theirs.kind, theirs.n_latents) == (ours.site, ours.kind, ours.n_latents)
            assert theirs.fvu.value == pytest.approx(ours.fvu.value, abs=1e-4)
            assert theirs.l0.value == pytest.approx(ours.l0.value, rel=1e-3)


def test_a_score_opens_as_a_run_does(network, text, tmp_path):
    card = score(network, saes(tmp_path / "files"), **options(text, tmp_path))
    assert isinstance(card.replacement.delta_loss, Measured)
    assert {"zero", "mean", "random_dictionary", "pca"} <= set(card.baselines)
    assert [d.name for d in card.dictionaries] == ["mlp_out.1", "mlp_out.2"]
    run = open_run(tmp_path / "out")
    assert len(run.groups) == 2
    assert len(open_run(f"{tmp_path / 'out'}:mlp.1").groups) == 1
    assert Scorecard.model_validate_json((tmp_path / "out" / "scorecard.json").read_text()) == card
    again = evaluate(EvaluateConfig(run=tmp_path / "out", sequences=8, rollouts=0, fit_places=600))
    assert again.replacement == card.replacement
    found = report(ReportConfig(run=tmp_path / "out", features=3, sequences=8))
    assert all(len(features) == 3 for features in found.features.values())
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert [row["address"] for row in source] == ["layer_1", "layer_2"]
    with pytest.raises(BadFolder, match="not empty"):
        score(network, tmp_path / "files", **options(text, tmp_path))


def test_rivals_fitted_one_site_at_a_time_are_the_same_rivals(network, text, tmp_path, monkeypatch):
    from understudy.workflows._scoring import in_turn

    saes(tmp_path / "files")
    together = score(network, tmp_path / "files", **options(text, tmp_path, out=tmp_path / "together"))
    asked = []
    build = in_turn.build_arms
    counted = lambda n, s, part, *more: asked.append(len(part)) or build(n, s, part, *more)  # noqa: E731
    monkeypatch.setattr(in_turn, "build_arms", counted)
    monkeypatch.setattr(in_turn, "RECORDED_BYTES", 1)
    alone = score(network, tmp_path / "files", **options(text, tmp_path, out=tmp_path / "alone"))
    assert asked == [1, 1]
    assert list(alone.baselines) == list(together.baselines)
    assert alone.baselines == together.baselines


def test_memory_changes_nothing_and_weights_are_let_go(network, tmp_path, text):
    """With room for one dictionary each is read again and again; the figures are the same, bit for bit."""
    saes(tmp_path / "files", layers=(0, 1, 2, 3))
    wide = ScoreConfig(dictionary=str(tmp_path / "files"))
    groups = open_groups(wide, network)
    held = groups[0].members[0].held
    assert not held.open
    narrow = open_groups(wide.model_copy(update={"held_gb": 1e-6}), network)
    acts = network.record(network.example(), [s for g in groups for s in g.reads])
    for _ in range(2):
        for a, b in zip(groups, narrow, strict=True):
            for site, value in a.reconstruct(acts).items():
                assert torch.equal(value, b.reconstruct(acts)[site])
            assert len(narrow[0].members[0].held.open) == 1
    assert held.n_read == 4
    assert len(held.open) == 4
    assert narrow[0].members[0].held.n_read == 8


def test_what_is_held_stays_below_the_limit(network, tmp_path):
    saes(tmp_path / "files", layers=(0, 1, 2, 3))
    one = 4 * (2 * 256 * D + 256 + D + 4 * D)
    groups = open_groups(ScoreConfig(dictionary=str(tmp_path / "files"), held_gb=2.5 * one / 1e9), network)
    held = groups[0].members[0].held
    for group in groups:
        group.members[0].whole()
        assert sum(v.nbytes for d in held.open.values() for v in d.state_dict().values()) <= 2.5 * one
    assert list(held.open) == ["layer_2", "layer_3"]


def test_groups_come_in_forward_order_and_not_by_their_files_names(network, tmp_path):
    for name, layer in (("10", 3), ("2", 1), ("a", 0)):
        saes(tmp_path / name, layers=(layer,))
    groups = open_groups(ScoreConfig(dictionary=str(tmp_path)), network)
    assert [str(g.writes[0]) for g in groups] == [f"model.layers.{i}.mlp:out" for i in (0, 1, 3)]


def test_sites_choose_and_alternatives_are_refused(network, tmp_path):
    saes(tmp_path / "files")
    saes(tmp_path / "files" / "other")
    with pytest.raises(BadInput, match=r"layer_1.*alternatives|alternatives"):
        open_groups(ScoreConfig(dictionary=str(tmp_path / "files")), network)
    one = ScoreConfig(dictionary=f"{tmp_path}/files/layer_*", sites="mlp_out.2")
    (group,) = open_groups(one, network)
    assert group.writes == (Site("model.layers.2.mlp"),)
    with pytest.raises(UnknownName, match=r"none of the 2 dictionaries"):
        open_groups(one.model_copy(update={"sites": "attn_out.2"}), network)


def test_a_dictionary_of_another_network_is_refused_by_its_width(network, tmp_path):
    files.saelens(tmp_path, hook="blocks.1.hook_mlp_out")
    with pytest.raises(WrongShape, match=r"width 12 .* has 192.*made for some-model"):
        open_groups(ScoreConfig(dictionary=str(tmp_path)), network)
    files.saelens(tmp_path, files.weights(D), hook="blocks.9.hook_mlp_out")
    with pytest.raises(UnknownName, match="its blocks are 0 to 3"):
        open_groups(ScoreConfig(dictionary=str(tmp_path)), network)


def test_one_that_does_worse_than_the_mean_is_said_loudly(network, text, tmp_path):
    w = files.weights(D, 64)
    files.saelens(tmp_path / "files", w | {"b_dec": 40 + w["b_dec"]}, "blocks.1.hook_mlp_out")
    card = score(network, tmp_path / "files", **options(text, tmp_path))
    assert card.dictionaries[0].fvu.low > 1
    assert "mlp_out.1 does worse than a constant" in card.warnings[0]
    assert "WARNING: mlp_out.1" in str(card).splitlines()[1]
    from understudy.web.page import render

    assert "does worse than a constant" in render(report(ReportConfig(run=tmp_path / "out", features=1, sequences=8)))


def test_a_good_dictionary_gives_no_warning(network, text, tmp_path):
    assert score(network, saes(tmp_path / "files"), **options(text, tmp_path)).warnings == ()


def test_a_failure_leaves_no_folder_that_looks_like_a_score(network, text, tmp_path, monkeypatch):
    from understudy.workflows import score as workflow

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "judge", fails)
    with pytest.raises(KeyboardInterrupt):
        score(network, saes(tmp_path / "files"), **options(text, tmp_path))
    with pytest.raises(BadFolder):
        RunFolder.open(tmp_path / "out")


def test_a_cross_layer_transcoder_is_one_group_with_its_biases(network, tmp_path):
    root, n = tmp_path / "clt", 32
    circuit_tracer.write_config(root, "cross_layer_transcoder", ("mlp.hook_in", "mlp.hook_out"), 4, "demo")
    for i in range(4):
        w = files.weights(D, n, D * (4 - i))
        arrays = {"W_enc": w["W_enc"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"], "sparsity.theta": torch.zeros(n)}
        writes = tuple(Site(f"model.layers.{j}.mlp") for j in range(i, 4))
        reads, rule = (Site(f"model.layers.{i}.mlp", "in"),), {"sparsity": {"name": "threshold"}}
        spec = DictionarySpec("clt", reads, writes, rule, arrays)
        circuit_tracer.write_clt_layer(root, i, spec, torch.full((D,), float(i)))
    (group,) = open_groups(ScoreConfig(dictionary=str(root)), network)
    assert [len(m.writes) for m in group.members] == [4, 3, 2, 1]
    assert {str(s): float(b[0]) for s, b in group.biases.items()} == {f"model.layers.{i}.mlp:out": i for i in range(4)}


def test_streamed_keeps_the_contract_of_what_it_reads(network, tmp_path):
    (group,) = open_groups(ScoreConfig(dictionary=str(saes(tmp_path / "files", layers=(1,)))), network)
    streamed = group.members[0]
    assert isinstance(streamed, Streamed)
    whole = streamed.whole()
    acts = network.record(network.example(), streamed.reads)
    z = streamed.encode(acts).z
    ids = z.ids.unique()[:3]
    site = streamed.writes[0]
    assert torch.equal(streamed.atoms(ids)[site], whole.atoms(ids)[site])
    assert torch.equal(streamed.decode(z)[site] + streamed.rest(acts)[site], whole.reconstruct(acts)[site])
    rows, bias, which = streamed.linearise(acts, z)
    values = (rows[site][which] * acts[site].flatten(0, 1)[z.rows]).sum(-1) + bias[which]
    torch.testing.assert_close(values[z.values > 0], z.values[z.values > 0], atol=1e-4, rtol=1e-4)
    assert streamed.thresholded(acts).sparsity.is_thresholded
