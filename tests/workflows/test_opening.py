"""`organism:NAME@SEED` wherever a network is named."""

import pytest
import torch

from understudy import networks, open_network
from understudy.cli.commands import networks as networks_command
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.progress import SILENT
from understudy.organisms import make_organism
from understudy.workflows.evaluate import EvaluateConfig, evaluate, open_run
from understudy.workflows.networks import NetworksConfig
from understudy.workflows.train import TrainConfig, train


@pytest.mark.parametrize(("spec", "seed"), [("organism:two_codes", 0), ("organism:two_codes@3", 3)])
def test_an_organism_opens_with_its_seed_and_its_data(spec, seed):
    network, world = open_network(spec), make_organism("two_codes", seed)
    assert network.name == spec
    ours, theirs = (n.module.state_dict() for n in (network, world.network))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    given = network.sequences("held_out").batch(slice(0, 2)).inputs["x"]
    assert torch.equal(given, world.data["held_out"].batch(slice(0, 2)).inputs["x"])


def test_other_schemes_open_as_before():
    assert type(open_network("demo:digits-vit")) is type(networks.open_network("demo:digits-vit"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("organism:srot", "Did you mean sort"), ("organism:sort@x", "a seed is digits"),
        ("organism:", "write organism:NAME"), ("organism", "organism:NAME"), ("organisms:sort", "organism:NAME"),
    ],
)  # fmt: skip
def test_what_is_no_organism_is_said_with_the_way_out(spec, said):
    with pytest.raises(UnknownName, match=said):
        open_network(spec)


def test_the_shelf_of_networks_says_where_organisms_are_opened():
    with pytest.raises(UnknownName, match=r"understudy\.open_network"):
        networks.open_network("organism:sort")


def test_an_organism_in_another_dtype_or_without_its_base_is_refused():
    with pytest.raises(BadInput, match="float32"):
        open_network("organism:sort", dtype="bfloat16")
    with pytest.raises(BadInput, match="demo:lander"):
        make_organism("misbehaviour")


def test_a_run_on_an_organism_is_opened_and_judged_by_its_name(tmp_path):
    config = TrainConfig(
        network="organism:sort@2", kind="sae", sites="resid.0", n_latents=23, k=4, tokens=5_000, batch=256,
        out=tmp_path / "run",
    )  # fmt: skip
    train(config)
    assert open_run(tmp_path / "run").network.name == "organism:sort@2"
    card = evaluate(EvaluateConfig(run=tmp_path / "run", sequences=16))
    assert card.network == "organism:sort@2"


def test_the_list_of_networks_says_how_organisms_are_named(capsys):
    from rich.console import Console

    _, text = networks_command.run(NetworksConfig(), SILENT)
    Console(width=200).print(text)
    assert "organism:NAME or organism:NAME@SEED" in capsys.readouterr().out
