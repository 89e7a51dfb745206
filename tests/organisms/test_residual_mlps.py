"""Which neurons serve a feature, on weights set by hand: two neurons that each do one feature alone."""

import pytest
import torch

from understudy.organisms import residual_mlps as organism
from understudy.organisms.residual_mlps import EXACT, FREQUENCY, N, ResidualMLPs, _draw, contributions, servers


@pytest.fixture
def by_hand():
    """Orthonormal directions; the first neuron of each layer does features 3 and 8, feature 8 at half strength."""
    module = organism._module().eval()
    with torch.no_grad():
        q, _ = torch.linalg.qr(torch.randn(organism.D, N, generator=torch.Generator().manual_seed(0)))
        module.embed.weight.copy_(q)
        module.unembed.weight.copy_(q.T)
        for mlp, feature, size in zip(module.mlps, (3, 8), (1.0, 0.5)):
            mlp.read.weight.zero_()[0] = q[:, feature]
            mlp.write.weight.zero_()[:, 0] = size * q[:, feature]
    return module


def test_contributions_and_servers_by_hand(by_hand):
    found = contributions(by_hand)
    expected = torch.zeros(50, N)
    expected[0, 3], expected[25, 8] = 1.0, 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # rounding alone serves nothing
        for mlp in by_hand.mlps:
            mlp.write.weight[:, 1:] = 0
    serve = servers(by_hand)
    assert serve[3][0] == 0
    assert serve[8][0] == 25


def test_the_share_of_relu_that_is_computed_by_hand(by_hand):
    network = organism.OrganismNetwork(by_hand, "x", {}, {}, output="numbers")
    shares = organism._parts(network)
    expected = torch.zeros(N)
    expected[3], expected[8] = 1.0, 0.5
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)
    silent = organism._parts(network, [[0] if i == 3 else [1] for i in range(N)])
    assert abs(float(silent[3])) < 1e-4
    assert float(silent[8]) == pytest.approx(0.5, abs=1e-4)


def test_values_are_what_the_module_gives(by_hand):
    truth = organism._truth(by_hand, servers(by_hand))
    x = _draw(32, torch.Generator().manual_seed(1))[None]
    values = truth.values(organism.Batch({"x": x}))
    assert values.shape == (1, 32, len(truth.features))
    torch.testing.assert_close(values[..., N], x[..., 3].relu(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values[..., -N:], x + x.relu())


def test_the_mark_to_beat_is_half_of_the_features_done_exactly():
    x = _draw(200_000, torch.Generator().manual_seed(2))
    left = x.relu()
    left[:, : N // 2] = 0
    assert float(left.square().mean()) == pytest.approx(EXACT, rel=0.05)
    assert float((x != 0).double().mean()) == pytest.approx(FREQUENCY, rel=0.05)
    assert isinstance(organism._module(), ResidualMLPs)
