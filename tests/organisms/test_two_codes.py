"""Two codes read by neurons that saturate: small errors cost where nothing should be, and kl training sees it."""

import pytest
import torch

from understudy.organisms import make_organism
from understudy.organisms._planted import ACT
from understudy.organisms.two_codes import SLOPE, _basis, which_code
from understudy.workflows.train import TrainConfig, train


def cost(world, direction: torch.Tensor, size: float) -> float:
    """What adding a multiple of a direction to `act` costs where the first group holds axes 0 and 1 at 1."""
    basis, x = _basis(0), torch.zeros(1, 1, 48)
    x[..., 0], x[..., 1] = 1.0, 1.0
    with torch.no_grad():
        clean = world.network.module(x)
        with world.network.edited({ACT: lambda value, call: value + size * (direction @ basis)}):
            return float((world.network.module(x) - clean).square().sum())


@pytest.mark.parametrize(("name", "ratio"), [("two_codes", 1.0), ("two_codes_saturating", SLOPE**2)])
def test_a_small_error_of_what_is_there_costs_less_than_one_of_what_is_not(name, ratio):
    world, axes = make_organism(name), torch.eye(48)
    there, not_there = cost(world, axes[0], -0.05), cost(world, axes[2], 0.05)
    assert there / not_there == pytest.approx(ratio, rel=1e-3)
    assert not_there == pytest.approx(0.05**2, rel=1e-3), "each signed vector writes a direction of length 1"


@pytest.mark.parametrize("name", ["two_codes", "two_codes_saturating"])
def test_the_neurons_read_the_code_in_use_and_the_twin_the_other(name):
    world = make_organism(name)
    read = [w.network.module.get_parameter("mlp.read.weight") for w in (world, world.negative)]
    assert which_code(read[0]).value == pytest.approx(1)
    assert which_code(read[1]).value == pytest.approx(0, abs=1e-6)


@pytest.mark.long
def test_end_to_end_finds_the_code_in_use_and_local_training_is_at_chance(tmp_path):
    """Measured over three seeds: 0.98 [0.97, 0.99] and 0.51 [0.37, 0.66]."""
    world, found = make_organism("two_codes_saturating"), {}
    for objective, local_weight in (("local", None), ("kl", 0.0)):
        config = TrainConfig(
            kind="sae", sites="act", n_latents=96, k=4, tokens=1_000_000, batch=1024, objective=objective,
            local_weight=local_weight, out=tmp_path / objective,
        )  # fmt: skip
        found[objective] = which_code(train(config, network=world.network).groups[0].members[0].W_dec.detach())
    assert found["kl"].low > 0.9
    assert found["local"].low < 0.5 < found["local"].high
