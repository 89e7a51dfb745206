"""What a step trains on, from a position on: shuffled rows, or whole sequences where an objective needs them."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from understudy.core.dictionary import Acts
from understudy.core.objective import OnSequences
from understudy.core.records.errors import BadActivations
from understudy.data import Order
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.stored import Stored

Source = Harvest | Stored
"""Where rows come from: the network, or a folder that `understudy collect` wrote."""

Position = dict[str, int]
"""Where in the data a run is: the chunk, and batches of it that are done. A sequence step is a chunk of one batch."""


class Served(NamedTuple):
    acts: Acts
    run: OnSequences | None
    after: Position
    """The position once this is trained on."""


def feed(source: Source, needs: Literal["rows", "sequences"], batch: int, position: Position) -> Iterator[Served]:
    """Endless. batch: places of a step; of whole sequences as many as hold about that. Those come from a harvest."""
    if needs == "rows":
        return _rows(source, batch, position)
    assert isinstance(source, Harvest)
    return _sequences(source, batch, position)


def _rows(source: Source, batch: int, position: Position) -> Iterator[Served]:
    chunk, skip = position["chunk"], position["batch"]
    while True:
        n = skip
        for acts in source.batches(chunk, batch, skip):
            n += 1
            yield Served(acts, None, {"chunk": chunk, "batch": n})
        chunk, skip = chunk + 1, 0


def _sequences(harvest: Harvest, batch: int, position: Position) -> Iterator[Served]:
    network, sequences = harvest.network, harvest.sequences
    order, places, number = Order(len(sequences), harvest.seed), _places(harvest), position["chunk"]
    at_once = min(len(sequences), max(1, batch // places))
    while True:
        picked = sequences.batch(order.batch(number, at_once)).to(network.device)
        acts = {s: v.flatten(0, -2).float() for s, v in network.record(picked, harvest.sites).items()}
        if picked.mask is not None:
            acts = {s: v[picked.mask.reshape(-1)] for s, v in acts.items()}
        for site, value in acts.items():
            if not bool(value.isfinite().all()):
                raise BadActivations(f"{site} gave NaN or infinite activations at step {number} of the data.")
        number += 1
        yield Served(acts, OnSequences(network, picked), {"chunk": number, "batch": 0})


def _places(harvest: Harvest) -> int:
    first = harvest.sequences.batch(slice(0, 1)).to(harvest.network.device)
    return max(value[..., 0].numel() for value in harvest.network.record(first, harvest.sites).values())
