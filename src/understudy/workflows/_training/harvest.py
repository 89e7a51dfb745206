"""Harvest: shuffled rows of activations at many sites from one stopped forward pass, as a function of (seed, chunk).

A chunk is a set of sequences drawn from all over the data; its rows are permuted together and served once. Nothing is
carried from one chunk to the next, so a run resumes by harvesting its current chunk again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.network import Network
from understudy.core.records.errors import BadActivations, WrongShape
from understudy.core.site import Site
from understudy.data import Order

FORWARD_SEQUENCES = 16


@dataclass
class Harvest:
    """Activations of `network` at `sites` over `sequences`, `chunk_sequences` sequences at a time."""

    network: Network
    sequences: Sequences
    sites: Sequence[Site]
    seed: int
    chunk_sequences: int
    n_rows: int = 0
    """Rows of the chunk that was harvested last."""
    origin: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    """[n_rows, 2]: the sequence of the data and the place in it that each of these rows is from."""
    _order: Order = field(init=False)
    _buffer: dict[Site, Tensor] = field(default_factory=dict)

    provenance: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        self._order = Order(len(self.sequences), self.seed)

    def chunk(self, number: int) -> dict[Site, Tensor]:
        """Rows [n, d] of each site, fp32, unshuffled; one preallocated buffer is reused. Raises BadActivations."""
        picked = self._order.batch(number, self.chunk_sequences)
        filled, origin = 0, []
        for i in range(0, len(picked), FORWARD_SEQUENCES):
            batch = self.sequences.batch(picked[i : i + FORWARD_SEQUENCES]).to(self.network.device)
            acts = self.network.record(batch, self.sites)
            _check_places(acts)
            counted = None if batch.mask is None or bool(batch.mask.all()) else batch.mask.reshape(-1)
            origin.append(_origin(picked[i : i + FORWARD_SEQUENCES], next(iter(acts.values())), counted))
            n = len(origin[-1])
            for site, value in acts.items():
                rows = value.reshape(-1, value.shape[-1])
                if counted is not None:
                    rows = rows[counted]
                if not is_finite(rows):
                    raise BadActivations(
                        f"{site} gave NaN or infinite activations on sequences "
                        f"{picked[i : i + FORWARD_SEQUENCES].tolist()} of the data (chunk {number})."
                    )
                self._place(site, rows, filled, value[0].numel() // value.shape[-1])
            filled += n
        self.n_rows, self.origin = filled, torch.cat(origin)
        return {site: rows[:filled] for site, rows in self._buffer.items()}

    def _place(self, site: Site, rows: Tensor, at: int, places: int) -> None:
        if site not in self._buffer:
            self._buffer[site] = torch.empty(self.chunk_sequences * places, rows.shape[-1], device=rows.device)
        self._buffer[site][at : at + len(rows)] = rows

    def batches(self, number: int, size: int, skip: int = 0) -> Iterator[dict[Site, Tensor]]:
        """The chunk's rows in an order fixed by (seed, number), `size` at a time, the first `skip` batches left out."""
        yield from self.shuffled(self.chunk(number), number, size, skip)

    def shuffled(self, rows: dict[Site, Tensor], number: int, size: int, skip: int = 0) -> Iterator[dict[Site, Tensor]]:
        """The rows of chunk `number`, in its order."""
        yield from in_batches(rows, self.order(number, len(next(iter(rows.values())))), size, skip)

    def order(self, number: int, n: int) -> Tensor:
        """In which the n rows of chunk `number` are served."""
        return row_order(self.seed, number, n)


def row_order(seed: int, number: int, n: int) -> Tensor:
    """A permutation of a chunk's n rows."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % (1 << 63))
    return torch.randperm(n, generator=generator, device="cpu")


def in_batches(rows: dict[Site, Tensor], order: Tensor, size: int, skip: int) -> Iterator[dict[Site, Tensor]]:
    """Rows in an order, `size` at a time, the first `skip` batches left out."""
    for index in order[skip * size :].split(size):
        if len(index):
            yield {site: value.index_select(0, index.to(value.device)) for site, value in rows.items()}


def is_finite(rows: Tensor) -> bool:
    """No NaN and nothing infinite. A sum shows either, in one pass; where it only overflowed, a closer look."""
    return bool(rows.sum().isfinite()) or bool(torch.isfinite(rows).all())


def _origin(picked: Tensor, value: Tensor, counted: Tensor | None) -> Tensor:
    """[rows, 2]: sequence and place of each row of one forward pass."""
    places = value[0].numel() // value.shape[-1]
    origin = torch.stack([picked.repeat_interleave(places), torch.arange(places).repeat(len(picked))], 1)
    return origin if counted is None else origin[counted.to(origin.device)]


def _check_places(acts: dict[Site, Tensor]) -> None:
    """Rows of all sites are served side by side, so row i must be the same place at each of them."""
    (first, value), *others = acts.items()
    for site, other in others:
        if other.shape[:-1] != value.shape[:-1]:
            raise WrongShape(
                f"{first} holds places {tuple(value.shape[:-1])} and {site} {tuple(other.shape[:-1])}: one run trains "
                "on sites with the same places. Train them in separate runs."
            )
