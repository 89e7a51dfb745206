"""Every organism: healthy, with a healthy twin, the same bits from the same seed, usable as any other network."""

import pytest
import torch

from understudy.core.batch import Sequences
from understudy.core.records.errors import BadFolder, BadWeights, UnknownName
from understudy.networks import open_network
from understudy.organisms import ORGANISMS, make_organism, open_organism, save_organism

SLOW = {
    "false_fact", "false_fact_spread", "password_locked", "misbehaviour", "misbehaviour_gru", "backdoor",
    "modular_addition", "mess3", "superposition_40_10", "lookup_or_copy_16", "lookup_or_copy_512", "two_hop",
    "residual_mlps",
}  # fmt: skip
"""Trained for more than a few seconds."""
NAMES = [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in ORGANISMS]


def made(name):
    base = ORGANISMS[name].base
    return make_organism(name, base=open_network(base) if base else None)


@pytest.mark.parametrize("name", NAMES)
def test_healthy_with_a_healthy_twin(name):
    world = made(name)
    assert [c for c in world.health() if not c.passed] == []
    assert world.negative is not None
    assert [c for c in world.negative.health() if not c.passed] == []
    assert world.negative.negative is None
    assert len(world.negative.checks) > 0
    assert len(world.checks) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_data_and_sites_work_as_of_any_network(name):
    world = made(name)
    network = world.network
    for split in ("train", "held_out"):
        data = network.sequences(split)
        assert isinstance(data, Sequences)
        one, same = data.batch(slice(3, 5)), data.batch(torch.tensor([3, 4]))
        assert all(torch.equal(one.inputs[k], same.inputs[k]) for k in one.inputs)
        assert one.mask is not None
    sites = [s.site for s in network.named_sites()]
    batch = network.example()
    acts = network.record(batch, sites, stop=False)
    places = next(iter(batch.inputs.values())).shape[:2]
    assert batch.mask is None or batch.mask.shape == places
    assert all(v.shape[:2] == places for v in acts.values())
    for feature in world.truth.features:
        for site in feature.sites:
            assert network.width(site) == len(feature.direction)
    if world.truth.values is not None and world.truth.features:
        assert world.truth.values(batch).shape == (*places, len(world.truth.features))
    output = network.forward(batch)
    assert float(network.divergence(output, output, batch).abs().max()) == 0


@pytest.mark.parametrize("name", ["synthetic", "two_codes", "new_reasons", "superposition_5_2"])
def test_values_times_directions_are_the_activation(name):
    """What the truth says is there explains the site up to its constant offset."""
    world = make_organism(name)
    batch = world.data["held_out"].batch(slice(0, 8))
    site = world.truth.features[0].site
    here = [i for i, f in enumerate(world.truth.features) if site in f.sites]
    built = world.truth.values(batch)[..., here] @ world.truth.directions(site)
    acts = world.network.record(batch, [site])[site]
    offset = world.network.module.get_submodule("embed").bias
    torch.testing.assert_close(acts, built + (0 if offset is None else offset), atol=1e-4, rtol=1e-4)


def test_making_one_leaves_the_caller_s_random_numbers_alone():
    state = torch.get_rng_state()
    assert make_organism("sort").negative is not None
    make_organism("two_codes")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["sort", "superposition_5_2_identity"])
def test_a_saved_organism_opens_without_training(name, tmp_path, monkeypatch):
    world = make_organism(name)
    folder = save_organism(world, 0, tmp_path / "o", world.health())
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "empty"))
    opened = open_organism(folder)
    before, after = (w.network.module.state_dict() for w in (world, opened))
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert opened.truth.names == world.truth.names
    assert not (tmp_path / "empty").exists()
    with pytest.raises(BadFolder, match="not empty"):
        save_organism(world, 0, folder, [])


def test_weights_that_are_not_the_organism_s_are_refused(tmp_path):
    world = make_organism("sort")
    folder = save_organism(world, 0, tmp_path / "o", [])
    twin = world.negative
    save_organism(twin, 0, tmp_path / "t", [])
    (tmp_path / "t" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(BadWeights, match="other weights"):
        open_organism(folder)
    with pytest.raises(BadFolder, match="no organism"):
        open_organism(tmp_path)


def test_an_unknown_name_has_its_nearest():
    with pytest.raises(UnknownName, match="histogram"):
        make_organism("histgram")
