"""What reads no text goes the same way: images and policies from training to scorecard, graph and page."""

import pytest
import torch

from understudy.core.records.metric import Measured, NotMeasured
from understudy.networks import open_network
from understudy.web.page import render
from understudy.workflows.attribute import AttributeConfig, attribute
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import TrainConfig, train

FAMILIES = {"demo:digits-vit": 3, "demo:digits-cnn": 3, "demo:lander": 2}
"""Networks, and how many parts each has to replace."""


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    if request.param == "demo:lander":
        pytest.importorskip("Box2D", reason="the lander needs gymnasium[box2d]")
    network = open_network(request.param)
    folder = tmp_path_factory.mktemp("families") / "run"
    config = TrainConfig(network=request.param, sites="mlp", n_latents=64, k=8, tokens=12_000, out=folder)
    train(config, network=network)
    return network, folder


def test_a_replacement_is_judged_by_the_networks_own_behaviour(trained):
    network, folder = trained
    card = evaluate(EvaluateConfig(run=folder, sequences=24, rollouts=8), network=network)
    own = card.replacement
    assert len(card.dictionaries) == FAMILIES[network.name]
    assert all(isinstance(m, Measured) for m in (own.loss_clean, own.delta_loss, own.kl, own.top1_agreement))
    assert own.delta_loss.value < card.baselines["mean"].replacement.delta_loss.value
    assert isinstance(own.equivalent_ngram, NotMeasured)
    # Latents on at a place: what each dictionary says of itself, over places of the same sequences.
    pca = card.baselines["pca"].l0.value
    assert pca == pytest.approx(sum(d.l0.value for d in card.dictionaries) / len(card.dictionaries), rel=0.2)
    acts = network.name == "demo:lander"
    assert (card.acting.episodes == 8) is acts
    assert isinstance(card.acting.recovered, Measured) is acts
    page = report(ReportConfig(run=folder), network=network)
    assert page.scorecard == card
    assert ("What an episode earns" in render(page)) is acts


def test_a_graph_of_one_input_is_exact(trained, tmp_path):
    network, folder = trained
    made = attribute(AttributeConfig(run=str(folder), input="@0", out=tmp_path / "x.acg"), network=network)
    assert made.card.certificate.exact


def test_the_lander_lands():
    pytest.importorskip("Box2D", reason="the lander needs gymnasium[box2d]")
    network = open_network("demo:lander")
    assert float(network.returns(24, seed=3).mean()) > 200
    assert float(network.returns(24, seed=3, random=True).mean()) < -100
    assert torch.equal(network.returns(2, seed=3), network.returns(24, seed=3)[:2])
