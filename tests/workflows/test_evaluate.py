"""The scorecard of a real small run, and the promises that its figures keep."""

import json
import shutil

import pytest
import torch

from understudy.core.records.errors import BadFolder, BadInput, BadWeights, UnknownName
from understudy.core.records.metric import Measured
from understudy.core.records.scorecard import Scorecard
from understudy.networks import open_network
from understudy.web.page import render
from understudy.workflows.evaluate import EvaluateConfig, evaluate, open_run
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import TrainConfig, train


@pytest.fixture(scope="module")
def card(finished) -> Scorecard:
    return evaluate(EvaluateConfig(run=finished.folder.path, sequences=24, rollouts=4))


def test_the_card_holds_every_figure_of_the_contract(card):
    data = json.loads(card.model_dump_json())
    wanted = {
        "run",
        "network",
        "data",
        "replaced",
        "dictionaries",
        "replacement",
        "baselines",
        "slices",
        "positions",
        "rollout",
    }
    assert wanted <= set(data)
    assert Scorecard.model_validate(data) == card
    for m in (card.replacement.loss_clean, card.replacement.delta_loss, card.replacement.kl, card.dictionaries[0].fvu):
        assert isinstance(m, Measured)
        assert m.low <= m.value <= m.high
    assert isinstance(card.replacement.equivalent_compute, Measured)


def test_loss_adds_up(card):
    b = card.replacement
    assert b.loss_replaced.value - b.loss_clean.value == pytest.approx(b.delta_loss.value, abs=1e-9)
    for rival in card.baselines.values():
        other = rival.replacement.loss_replaced.value - b.loss_replaced.value
        assert rival.paired_delta_loss.value == pytest.approx(other, abs=1e-9)
    assert sum(s.share for s in card.slices) == pytest.approx(1, abs=1e-9)
    assert {s.column for s in card.slices} == {"kind"}, "of Python files, unasked"
    mean = sum(s.share * s.delta_loss.value for s in card.slices if isinstance(s.delta_loss, Measured))
    missing = sum(s.share for s in card.slices if not isinstance(s.delta_loss, Measured))
    assert mean == pytest.approx(b.delta_loss.value, abs=0.02 + 10 * missing)


def test_every_mlp_was_replaced_and_what_was_not_is_named(card):
    assert card.replaced.modules == [f"model.layers.{i}.mlp" for i in range(4)]
    assert 0.6 < card.replaced.share_of_parameters < 0.7  # 3 x 192 x 512 of 4 x 192^2 + 3 x 192 x 512 a layer
    assert {f"attn.{i}" for i in range(4)} <= set(card.replaced.still_original)


def test_ablations_are_worse_than_the_understudy(card):
    for name in ("zero", "mean", "position_mean", "resample"):
        assert card.baselines[name].paired_delta_loss.low > 0
        assert 0 < getattr(card.replacement.recovered, name).value < 1
        own = getattr(card.baselines[name].replacement.recovered, name)
        assert own.value == pytest.approx(0, abs=1e-9)


def test_batches_change_nothing(finished, card, monkeypatch):
    from understudy.workflows._judging import passes

    monkeypatch.setattr(passes, "BATCH", 5)
    again = evaluate(EvaluateConfig(run=finished.folder.path, sequences=24, rollouts=0))
    for name, rival in again.baselines.items():
        before = card.baselines[name].replacement.loss_replaced.value
        assert rival.replacement.loss_replaced.value == pytest.approx(before, abs=2e-5), name
    assert again.replacement.kl.value == pytest.approx(card.replacement.kl.value, abs=2e-5)
    assert again.dictionaries[0].fvu.value == pytest.approx(card.dictionaries[0].fvu.value, rel=1e-4)


def test_the_ngram_yardstick_falls_with_its_order(card):
    losses = [m.value for m in card.ngram_losses.values()]
    assert losses[0] == pytest.approx(torch.tensor(2048.0).log().item(), abs=1e-6)
    assert losses[1] < losses[0]
    assert losses[2] < losses[1]


def test_a_dictionary_that_writes_what_the_module_writes_costs_nothing(finished, tmp_path):
    """The best case as a control: exact neurons in the place of every MLP leave no delta loss."""
    from understudy.baselines import TopNeurons
    from understudy.core.dictionary import Group
    from understudy.core.replacement import Replacement

    network = finished.network
    groups = []
    for part in network.parts():
        neurons = network.neurons(part) if part.name.startswith("mlp") else None
        if neurons is not None:
            groups.append(Group([TopNeurons(neurons.site, part.write, neurons.W, neurons.bias, len(neurons.W))]))
    assert len(groups) == 4
    batch = network.example()
    with torch.no_grad():
        out = Replacement(network, groups).run(batch).output.logits
        torch.testing.assert_close(out, network(batch).logits, rtol=0, atol=1e-4)


def test_the_report_shows_features_in_context(finished, card):
    made = report(ReportConfig(run=finished.folder.path, features=20, sequences=32))
    assert set(made.features) == {d.site for d in made.scorecard.dictionaries}
    for features in made.features.values():
        assert len(features) == 20
        for f in features:
            assert f.contexts
            assert 0 < f.density < 1
            assert all(c.tokens[c.peak].activation > 0 for c in f.contexts)
            assert max(c.tokens[c.peak].activation for c in f.contexts if c.band == "top") <= f.maximum + 1e-6
            assert len(f.raises) == len(f.lowers) == 8
            assert f.raises[0][1] >= f.raises[-1][1] > f.lowers[-1][1] >= f.lowers[0][1]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), BadWeights, "not a whole safetensors"),
        (lambda p: p.write_bytes(b"\x80\x04K\x01."), BadWeights, "pickle"),
        (lambda p: p.unlink(), BadWeights, "no weights file"),
        (lambda p: p.with_name("groups.json").write_text("[{"), BadFolder, "not valid JSON"),
        (lambda p: p.with_name("groups.json").unlink(), BadFolder, "not finished"),
        (lambda p: p.with_name("config.yaml").unlink(), BadFolder, "not a run"),
    ],
)
def test_a_damaged_run_is_refused_with_what_is_wrong(finished, tmp_path, damage, error, message):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder.path, copy)
    damage(copy / "weights.safetensors")
    with pytest.raises(error, match=message):
        open_run(copy)


def test_a_run_that_is_not_there_names_its_neighbours(finished):
    with pytest.raises(BadFolder, match="finished"):
        open_run(finished.folder.path.with_name("finishd"))


def test_an_sae_takes_no_module_out(small):
    train(TrainConfig(**{**small, "kind": "sae", "sites": "mlp_out.1"}))
    card = evaluate(EvaluateConfig(run=small["out"], sequences=8, rollouts=0))
    assert card.replaced.modules == []
    assert card.replaced.share_of_parameters == card.replaced.share_of_compute == 0
    assert card.replaced.rewritten == ["model.layers.1.mlp:out"]
    assert "mlp.1" in card.replaced.still_original
    assert "rewrites 1 activation" in render(report(ReportConfig(run=small["out"], features=2, sequences=4)))


def test_code_named_in_a_runs_folder_is_not_run_unasked(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder.path, copy)
    text = (copy / "config.yaml").read_text().replace("network: demo", "network: py:evil:function")
    (copy / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match="--network py:evil:function"):
        open_run(copy)
    assert open_run(copy, finished.network).network is finished.network


def test_groups_are_found_by_site_and_by_part(finished):
    run = open_run(finished.folder.path)
    assert run["mlp.1"] is run["mlp_out.1"] is run["model.layers.1.mlp:out"]
    with pytest.raises(UnknownName, match=r"mlp_out\.1"):
        run["mlp_out.11"]


def test_what_a_rival_spends_is_counted(card):
    assert card.baselines["linear_map"].l0.value == 0
    for name in ("pca", "top_neurons", "top_neurons_mean_filled"):
        own = [d.l0.value for d in card.dictionaries]
        assert card.baselines[name].l0.value == pytest.approx(sum(map(round, own)) / len(own))


def test_intervals_rest_on_documents(card):
    assert card.units <= 10
    assert card.replacement.delta_loss.n == card.units


def test_a_run_is_not_judged_on_other_weights_than_it_was_trained_on(finished):
    other = open_network("demo")
    with torch.no_grad():
        other.module.get_submodule("model.norm").weight.mul_(1.3)
    with pytest.raises(BadInput, match="other weights"):
        open_run(finished.folder.path, other)
