"""A planted absorber is counted by how much it absorbs; what only looks like one counts nothing."""

import pytest
import torch

from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape
from understudy.metrics.absorption import Absorption, absorption, own_latents

ROWS, D = 6000, 8
PARENT, CHILD, OTHER = 0, 1, 2
"""Axes of the features; the latents of the same number write them, unless a test says otherwise."""


def places(nested: bool = True, seed: int = 0):
    """[rows] parent on, child on; a loose child is on as often whatever the parent does."""
    g = torch.Generator().manual_seed(seed)
    parent = torch.rand(ROWS, generator=g) < 0.2
    child = (parent if nested else True) & (torch.rand(ROWS, generator=g) < (0.4 if nested else 0.08))
    return parent, child, torch.rand(ROWS, generator=g) < 0.3


def measured(z: torch.Tensor, atoms: torch.Tensor, parent, child, unit: float = 1.0, batches: int = 1) -> float:
    """z [rows, L] dense. Own latents from the first half, counts from the second."""
    half = ROWS // 2
    first = Latents.from_dense(z[:half])
    own = own_latents(first, parent[:half], child[:half])
    counted = Absorption(10, own, atoms[:, PARENT], unit)
    counted.baseline = float(counted.carried(first)[~parent[:half]].mean())
    for rows in torch.arange(half, ROWS).chunk(batches):
        p, c = parent[rows], child[rows]
        counted.update(Latents.from_dense(z[rows]), p & c, p & ~c, rows % 10)
    return float(absorption({k: v.sum(0)[None] for k, v in counted.sums.items()})[0])


def faithful(parent, child, other):
    """Every feature by its own latent."""
    return torch.stack([parent, child, other], 1).float(), torch.eye(3, D)


def absorbing(parent, child, other, share: float = 1.0):
    """At a share of the child's places the parent's latent is silent and a latent of the child writes both."""
    spoken = child & (torch.arange(ROWS) % 100 < 100 * share)
    z = torch.stack([parent & ~spoken, child & ~spoken, other, spoken], 1).float()
    both = torch.zeros(1, D)
    both[0, [PARENT, CHILD]] = 1.0
    return z, torch.cat([torch.eye(3, D), both])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_planted_absorber_is_counted(share):
    parent, child, other = places()
    assert measured(*absorbing(parent, child, other, share), parent, child) == pytest.approx(share, abs=0.05)


def test_a_faithful_dictionary_absorbs_nothing():
    parent, child, other = places()
    assert measured(*faithful(parent, child, other), parent, child) == 0.0


def test_a_parent_that_is_missed_and_not_written_by_others_is_no_absorption():
    parent, child, other = places()
    z, atoms = faithful(parent, child, other)
    z[child, PARENT] = 0.0
    assert measured(z, atoms, parent, child) == 0.0


def test_a_latent_that_misses_at_random_counts_nothing_even_where_others_write_its_direction():
    parent, child, other = places()
    z, atoms = faithful(parent, child, other)
    missed = parent & (torch.rand(ROWS, generator=torch.Generator().manual_seed(3)) < 0.5)
    z[missed, PARENT] = 0.0
    z = torch.cat([z, (missed & (torch.arange(ROWS) % 2 == 0))[:, None].float() * 0.9], 1)
    atoms = torch.cat([atoms, atoms[PARENT : PARENT + 1]])
    z[:, 3] *= torch.rand(ROWS, generator=torch.Generator().manual_seed(4)) < 0.2  # too rare to be the parent's own
    assert abs(measured(z, atoms, parent, child)) < 0.05


def test_a_parent_split_between_two_latents_is_not_absorbed():
    parent, child, other = places()
    z, atoms = faithful(parent, child, other)
    even = torch.arange(ROWS) % 2 == 0
    z = torch.cat([z, (parent & even)[:, None].float()], 1)
    z[even, PARENT] = 0.0
    assert measured(z, torch.cat([atoms, atoms[PARENT : PARENT + 1]]), parent, child) == 0.0


def test_without_a_hierarchy_there_is_nothing_to_absorb():
    """The same children, on as often, whatever the parent does: a dictionary of features has none."""
    parent, child, other = places(nested=False)
    assert measured(*faithful(parent, child, other), parent, child) == 0.0


def test_unit_order_of_latents_and_batches_change_nothing():
    parent, child, other = places()
    z, atoms = absorbing(parent, child, other, 0.5)
    plain = measured(z, atoms, parent, child)
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(5))
    assert measured(z[:, order], atoms[order], parent, child) == plain
    assert measured(10 * z, atoms, parent, child, unit=10.0) == plain
    assert measured(z / 3, 3 * atoms, parent, child) == plain
    assert measured(z, atoms, parent, child, batches=9) == plain


def test_own_latents_do_not_look_at_places_with_children():
    parent, child, other = places()
    z, _ = absorbing(parent, child, other)
    own = own_latents(Latents.from_dense(z), parent, child)
    assert own.ids.tolist() == [PARENT]
    assert own.f1 == 1.0


def test_a_parent_without_a_latent_is_said_by_its_f1():
    parent, child, other = places()
    z, _ = faithful(parent, child, other)
    z[:, PARENT] = 0.0
    assert own_latents(Latents.from_dense(z), parent, child).f1 < 0.5


def test_rows_that_do_not_fit_are_refused():
    parent, child, other = places()
    z = Latents.from_dense(faithful(parent, child, other)[0])
    with pytest.raises(WrongShape, match="stands"):
        own_latents(z, torch.zeros(ROWS, dtype=torch.bool), child)
    with pytest.raises(WrongShape, match="rows"):
        own_latents(z, parent[:5], child[:5])


def test_false_alarms_weigh_as_if_the_parent_were_always_alone():
    """The same latent, right at all parents and on at a tenth of the other places, whether or not children are many."""
    parent, child, _ = places()
    alarm = ~parent & (torch.rand(ROWS, generator=torch.Generator().manual_seed(6)) < 0.1)
    z = Latents.from_dense((parent | alarm)[:, None].float())
    few, none = own_latents(z, parent, parent & (torch.arange(ROWS) % 10 > 0)), own_latents(z, parent, child & ~parent)
    assert few.f1 == pytest.approx(none.f1, abs=1e-6)
