"""Recovery of known mechanisms, on factors and gates written by hand."""

import pytest
import torch

from understudy.metrics.components import mistakes, recovery

TRUTH = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
OWN = torch.cat([torch.eye(3), torch.zeros(2, 3)])
OTHER = torch.cat([TRUTH, torch.randn(2, 2, generator=torch.Generator().manual_seed(0))])
GATES = torch.cat([torch.eye(3), torch.zeros(3, 2)], 1)


def test_one_component_a_feature_is_perfect_in_any_order():
    order = torch.tensor([4, 2, 0, 3, 1])
    for own, other, gates in ((OWN, OTHER, GATES), (OWN[order], OTHER[order], GATES[:, order])):
        found = recovery(own, other, TRUTH, gates)
        assert found.cosine == pytest.approx(1)
        assert found.length_ratio == pytest.approx(1)
        assert (found.live, found.mistakes) == (3, 0)


def test_it_does_not_depend_on_how_a_component_splits_its_size_or_sign():
    scale = torch.tensor([2.0, -3.0, 0.5, 1.0, 1.0])[:, None]
    assert recovery(OWN * scale, OTHER / scale, TRUTH, GATES).cosine == pytest.approx(1)


def test_a_shrunk_component_keeps_its_angle_and_loses_its_length():
    found = recovery(OWN, 0.8 * OTHER, TRUTH, GATES)
    assert found.cosine == pytest.approx(1)
    assert found.length_ratio == pytest.approx(0.8)


def test_a_tiny_part_in_the_right_direction_is_not_taken_for_the_feature():
    own = torch.cat([OWN[:3], 1e-3 * torch.eye(3)[:1]])
    other = torch.cat([torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]]), TRUTH[:1]])
    found = recovery(own, other, TRUTH, torch.cat([torch.eye(3), torch.zeros(3, 1)], 1))
    assert found.cosine == pytest.approx((2**-0.5 + 2) / 3)
    assert found.length_ratio == pytest.approx((2**0.5 + 2) / 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0),
        ({(0, 0): 0.95}, 0),  # within the tolerance
        ({(0, 0): 0.5}, 1),  # a feature's own gate is half open
        ({(0, 1): 0.3}, 1),  # another's opens too
        ({(0, 4): 0.3, (1, 4): 0.3}, 2),
        ({(0, 0): 0.0, (0, 1): 1.0}, 2),  # two features share: an own gate is missing, another's opens
    ],
)
def test_mistakes_are_counted_one_by_one(change, expected):
    gates = GATES.clone()
    for at, value in change.items():
        gates[at] = value
    assert mistakes(gates) == expected


def test_nothing_open_is_a_mistake_for_every_feature_even_with_too_few_components():
    assert mistakes(torch.zeros(3, 5)) == 3
    assert mistakes(torch.zeros(3, 2)) == 3
    assert mistakes(torch.eye(3)[:, :2]) == 1
