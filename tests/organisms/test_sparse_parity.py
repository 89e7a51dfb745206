"""Sparse parity: targets by hand, and figures of a network that computes another parity."""

import torch

from understudy.organisms import make_organism
from understudy.organisms import sparse_parity as organism
from understudy.organisms.sparse_parity import ACT, N_BITS, _data, _hidden, _read, _rotation, _turned, support


def test_targets_are_the_parity_of_the_bits_and_of_no_fewer():
    bits = support(0)
    batch = _data(64, 0, 3, True).batch(slice(0, 64))
    x, y = batch.inputs["x"], batch.targets
    odd = (x[..., bits] > 0).sum(-1) % 2 == 1
    assert torch.equal(y.bool(), odd)
    sign = 2 * y.float() - 1
    for one in bits:
        assert abs(float((x[..., one] * sign).mean())) < 0.06
        pair = [b for b in bits if b != one]
        assert abs(float((x[..., pair].prod(-1) * sign).mean())) < 0.06


def test_the_figures_tell_these_bits_from_others():
    world = make_organism("sparse_parity")
    bits = world.truth.facts["bits"]
    wrong = [i for i in range(N_BITS) if i not in bits][:3]
    assert _turned(world.network, bits).value > 0.99
    assert _turned(world.network, wrong).value < 0.01
    assert _read(world.network, wrong).value < 0.1 < 0.5 < _read(world.network, bits).value
    assert _hidden(world.network, wrong).value > 0.95


def test_the_true_directions_are_the_rows_of_a_rotation():
    world = make_organism("sparse_parity")
    rotation = _rotation(0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(N_BITS), atol=1e-5, rtol=0)
    batch = world.data["held_out"].batch(slice(0, 4))
    act = world.network.record(batch, [ACT])[ACT]
    torch.testing.assert_close(act @ world.truth.directions(ACT).T, world.truth.values(batch), atol=1e-5, rtol=0)
    assert organism.support(0) != organism.support(1)
