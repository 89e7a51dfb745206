"""The demo's recurrent language models: from their weights to scorecard, page, graph and intervention."""

import json
from pathlib import Path

import pytest
import torch

from understudy import edits
from understudy.core.graph import Graph
from understudy.core.names import find_sites
from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.core.records.metric import Measured
from understudy.edits.graph_groups import own_input
from understudy.networks import networks, open_network
from understudy.web.page import render
from understudy.workflows.attribute import AttributeConfig, attribute
from understudy.workflows.demo import what_to_replace
from understudy.workflows.evaluate import EvaluateConfig, SavedRun, evaluate, open_run
from understudy.workflows.intervene import InterveneConfig, intervene
from understudy.workflows.networks import NetworksConfig, list_networks
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.run import RunConfig, run
from understudy.workflows.train import TrainConfig, train

FAMILIES = {"demo:gru": "gru", "demo:mamba2": "mamba2"}
RUNS = {"gru": ("demo:gru", "sae", "mixer_out"), "mamba2": ("demo:mamba2", "sae", "mixer_out"),
        "gru cell": ("demo:gru", "transcoder", "cell")}  # fmt: skip
LARGEST = 1_600_000


@pytest.mark.parametrize("name", FAMILIES)
def test_what_comes_along_is_small_listed_and_no_pickle(name):
    card = next(c for c in networks() if c.name == name)
    assert card.family == FAMILIES[name]
    weights = card.path / "model.safetensors"
    assert sorted(p.suffix for p in card.path.iterdir()) == [".json", ".json", ".safetensors"]
    assert weights.stat().st_size <= LARGEST
    written = json.loads((card.path / "card.json").read_text())
    assert written["weights_bytes"] == weights.stat().st_size
    network = open_network(name)
    assert sum(p.numel() for p in network.module.parameters()) == card.parameters
    assert what_to_replace(network) == ("sae", "mixer_out")


def test_what_is_listed_names_its_family():
    rows = {row["name"]: row["family"] for row in list_networks(NetworksConfig())}
    assert {name: rows[name] for name in FAMILIES} == FAMILIES
    assert rows["demo"] == "llama"
    assert what_to_replace(open_network("demo")) == ("transcoder", "mlp")


@pytest.fixture(scope="module", params=RUNS)
def trained(request, text, tmp_path_factory):
    name, kind, sites = RUNS[request.param]
    network = open_network(name)
    folder = tmp_path_factory.mktemp("recurrent") / "run"
    config = TrainConfig(network=name, kind=kind, sites=sites, n_latents=96, k=12, tokens=16_000, batch=512,
                         data=f"text:{text}", context=64, out=folder)  # fmt: skip
    train(config, network=network)
    return network, folder


def test_a_recurrent_network_is_judged_like_any_other(trained):
    network, folder = trained
    card = evaluate(EvaluateConfig(run=folder, sequences=8, rollouts=2), network=network)
    own = card.replacement
    figures = (own.loss_clean, own.delta_loss, own.kl, own.top1_agreement, own.recovered.mean, card.rollout.delta_loss)
    assert all(isinstance(figure, Measured) for figure in figures)
    assert own.loss_clean.value < card.ngram_losses["2"].value, "worse than a bigram"
    assert own.delta_loss.value < card.baselines["mean"].replacement.delta_loss.value
    assert card.rollout.length == 48
    replaces = card.dictionaries[0].kind == "transcoder"
    assert (card.replaced.share_of_parameters > 0.5) is replaces
    assert (card.replaced.modules == []) is not replaces
    assert ("position_mean" in card.baselines) is not replaces, "a call does not know its position"
    page = render(report(ReportConfig(run=folder), network=network))
    assert network.name in page


def test_its_graph_is_exact_and_its_edges_say_what_a_latent_does(trained, tmp_path):
    network, folder = trained
    config = AttributeConfig(run=str(folder), input="def f(x):\n    return", out=tmp_path / "x.acg", check=4)
    made = attribute(config, network=network)
    proof = made.card.certificate
    assert proof.exact, proof
    assert {f.rule for f in proof.frozen} >= {"gate", "norm scale"}
    assert isinstance(made.card.live.slope, Measured)
    latents = made.nodes.where("latent").nonzero().squeeze(-1)
    assert made.nodes.place[latents].max() > 0, "occurrences lie at places, also where calls are places"
    name = made.name(int(latents[-1]))
    if name.startswith("cell"):
        _only_run(config.out, name, open_run(folder, network))
        return
    found = intervene(InterveneConfig(source=config.out, set=(f"{name}=0",), controls=2, generate=4), network=network)
    assert found.occurrences >= 1
    assert found.divergence.value > 0


def _only_run(graph: Path, name: str, opened: SavedRun) -> None:
    """Inside a recurrence a change is carried on: it can be run, and the command that compares says why it cannot."""
    with pytest.raises(BadInput, match="called for one place at a time, and a change there is carried on"):
        intervene(InterveneConfig(source=graph, set=(f"{name}=0",)), network=opened.network)
    batch, latent = own_input(Graph.open(graph)), name.partition("@")[0]
    clean = opened.network(batch).logits
    changed = edits.intervene(opened.replacement, batch, {latent: 3.0}).output.logits
    assert (changed - clean).abs().max() > 0.01
    with pytest.raises(UnderstudyError, match="does not say which: change the latent at every place"):
        edits.intervene(opened.replacement, batch, {name: 0})


def test_a_graph_runs_at_every_size(trained):
    network, folder = trained
    curve = run(RunConfig(source=folder, nodes="8,64", sequences=4, ranking_sequences=4), network=network)
    assert {s.nodes for s in curve.rows("graph")} == {8, 64}
    assert curve.everything.delta_loss.value < curve.nothing.delta_loss.value


def test_nothing_changed_is_nothing_and_a_state_is_carried_on(trained):
    network, folder = trained
    opened = open_run(folder, network)
    batch = network.example()
    replacement = opened.replacement
    clean = network(batch).logits
    untouched = replacement.intervene(batch, {m: lambda z: z for g in opened.groups for m in g.members})
    assert torch.equal(untouched.output.logits, clean)
    (site,) = find_sites(network, "mixer_out.0")

    def at_three(value: torch.Tensor, call: int) -> torch.Tensor:
        value = value.clone()
        value[:, 3] = 0
        return value

    with network.edited({site: at_three}):
        changed = (network(batch).logits - clean).abs().amax(-1)
    assert changed[:, :3].max() == 0
    assert changed[:, 4:].max() > 0.01, "the next recurrence remembers what it read"


@pytest.mark.parametrize("name", FAMILIES)
def test_neurons_of_a_mixer_are_nodes_where_no_run_is_named(name, tmp_path):
    network = open_network(name)
    made = attribute(
        AttributeConfig(network=name, sites="mixer", input="import os", out=tmp_path / "x.acg", check=0, nodes=64),
        network=network,
    )
    assert made.card.certificate.exact
