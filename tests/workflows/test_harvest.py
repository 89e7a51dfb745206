"""What training is served: every place once, in an order that depends on the seed and the chunk alone."""

import pytest
import torch
from torch import nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.errors import BadActivations, WrongShape
from understudy.core.site import Site
from understudy.workflows._training import harvest as module
from understudy.workflows._training.harvest import Harvest

N_SEQUENCES, POS = 20, 5
FIRST, SECOND = Site("first"), Site("second")


class Marked(nn.Module):
    """`first` holds which sequence and which position a row came from; `second` is twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Net(Network):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Marked(), "marked")

    def example(self) -> Batch:
        return Data().batch(slice(0, 2))

    def axes(self, site, value):
        return ("batch", "pos", "d"), "once"


class Data:
    """Sequences of (sequence, position) pairs; `padded`: sequence i has i % 3 masked places at its end."""

    def __init__(self, padded: bool = False, broken: int | None = None) -> None:
        place = torch.cartesian_prod(torch.arange(N_SEQUENCES), torch.arange(POS)).reshape(N_SEQUENCES, POS, 2)
        self.x = place.float()
        self.mask = torch.arange(POS) < POS - torch.arange(N_SEQUENCES)[:, None] % 3 if padded else None
        if self.mask is not None:
            self.x[~self.mask] = -99
        if broken is not None:
            self.x[broken, 2, 1] = torch.nan

    def __len__(self) -> int:
        return N_SEQUENCES

    def batch(self, picked) -> Batch:
        return Batch({"x": self.x[picked]}, mask=None if self.mask is None else self.mask[picked])


def harvest(data: Data | None = None, chunk=8, seed=0, sites=(FIRST, SECOND)) -> Harvest:
    return Harvest(Net(), data or Data(), sites, seed, chunk)


def served(h: Harvest, number: int, size: int = 7, skip: int = 0) -> list[dict]:
    return list(h.batches(number, size, skip))


def marks(batches: list[dict]) -> list[tuple[int, int]]:
    return [tuple(int(v) for v in row) for b in batches for row in b[FIRST]]


def test_every_place_of_a_chunk_is_served_once():
    found = marks(served(harvest(), 0))
    sequences = {s for s, _ in found}
    assert len(sequences) == 8
    assert sorted(found) == [(s, p) for s in sorted(sequences) for p in range(POS)]


def test_every_sequence_is_served_once_an_epoch():
    """Chunks of 8 do not divide 20 sequences: an epoch ends inside a chunk."""
    h = harvest()
    found = [marks(served(h, number)) for number in range(5)]
    assert sorted(m for chunk in found for m in chunk) == sorted(2 * [(s, p) for s in range(20) for p in range(POS)])
    first = [m for chunk in found[:2] for m in chunk]
    assert len(set(first)) == len(first), "nothing twice before everything once"


def test_batches_have_the_size_asked_for_and_mix_sequences():
    batches = served(harvest(), 0)
    assert [len(b[FIRST]) for b in batches] == [7, 7, 7, 7, 7, 5]
    assert all(len({s for s, _ in marks([b])}) > 2 for b in batches)


def test_rows_of_all_sites_stay_together():
    h = harvest()
    second = h.network.module.second
    for batch in served(h, 1):
        assert batch[FIRST].dtype == torch.float32
        torch.testing.assert_close(batch[SECOND], second(batch[FIRST]).detach())


@pytest.mark.parametrize("padded", [False, True])
def test_how_many_sequences_a_forward_pass_takes_does_not_matter(padded, monkeypatch):
    expected = served(harvest(Data(padded)), 1)
    for size in (1, 3, 8, 100):
        monkeypatch.setattr(module, "FORWARD_SEQUENCES", size)
        found = served(harvest(Data(padded)), 1)
        assert marks(found) == marks(expected)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a[SECOND], b[SECOND])


@pytest.mark.parametrize("skip", [0, 1, 4, 6, 9])
def test_skipping_is_dropping_the_first_batches(skip):
    whole, rest = served(harvest(), 2), served(harvest(), 2, skip=skip)
    assert len(rest) == max(0, len(whole) - skip)
    for a, b in zip(rest, whole[skip:]):
        assert all(torch.equal(a[s], b[s]) for s in (FIRST, SECOND))


def test_a_chunk_does_not_depend_on_what_was_harvested_before():
    used, fresh = harvest(), harvest()
    for number in (5, 0, 2):
        served(used, number)
    assert marks(served(used, 3)) == marks(served(fresh, 3))
    assert torch.equal(used.chunk(4)[SECOND], fresh.chunk(4)[SECOND])


def test_the_seed_decides_sequences_and_order():
    assert marks(served(harvest(seed=1), 0)) == marks(served(harvest(seed=1), 0))
    assert marks(served(harvest(seed=1), 0)) != marks(served(harvest(seed=2), 0))
    assert marks(served(harvest(seed=1), 0)) != marks(served(harvest(seed=1), 1))


def test_masked_places_are_never_served_and_all_others_are():
    h = harvest(Data(padded=True))
    found = [m for number in range(5) for m in marks(served(h, number))]
    real = [(s, p) for s in range(20) for p in range(POS - s % 3)]
    assert sorted(found) == sorted(2 * real)


def test_a_smaller_chunk_after_a_larger_one_shows_nothing_of_it():
    """The buffer is reused, and padded chunks differ in how many places they hold."""
    used, fresh = harvest(Data(padded=True)), [harvest(Data(padded=True)) for _ in range(4)]
    for number, alone in enumerate(fresh):
        assert torch.equal(used.chunk(number)[FIRST], alone.chunk(number)[FIRST])


def test_served_batches_survive_the_next_chunk():
    h = harvest()
    kept = served(h, 0)
    before = [b[FIRST].clone() for b in kept]
    served(h, 1)
    assert all(torch.equal(b[FIRST], x) for b, x in zip(kept, before))


def test_nan_activations_name_the_site_and_the_sequences():
    h = harvest(Data(broken=13))
    message = r"first:out gave NaN or infinite activations on sequences \[.*\b13\b.*\] of the data \(chunk \d\)"
    with pytest.raises(BadActivations, match=message):
        [h.chunk(number) for number in range(3)]


def test_sites_whose_places_differ_are_refused(monkeypatch):
    h = harvest()
    record = h.network.record
    monkeypatch.setattr(
        h.network, "record", lambda *a: {s: v[:, : 5 - i] for i, (s, v) in enumerate(record(*a).items())}
    )
    with pytest.raises(WrongShape, match=r"first:out holds places \(8, 5\) and second:out \(8, 4\).*separate runs"):
        h.chunk(0)


def test_nan_at_masked_places_does_not_matter():
    data = Data(padded=True)
    data.x[~data.mask] = torch.nan
    assert bool(torch.isfinite(harvest(data).chunk(0)[SECOND]).all())
