"""Shards of activations: made from chunks of a harvest, and written while the next is made."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import torch
from torch import Tensor

from understudy.core.site import Site
from understudy.data import Activations
from understudy.workflows._training.harvest import Harvest

SHARD_BYTES = 250_000_000
"""Chunks go to a shard while this holds another; one alone has at most 256 MiB."""


class Shard(NamedTuple):
    """Chunk after chunk."""

    rows: dict[Site, list[Tensor]]
    origin: list[Tensor]
    """[rows, 2] each: sequence and position."""
    chunks: list[int]
    """Rows of each."""


def make_shard(harvest: Harvest, dtype: torch.dtype, first: int, known: int | None, wanted: int) -> Shard:
    """Chunks from the `first` on in the order in which training would be served them, as many as the shard had where
    that is known, else until there are enough."""
    made, size, n = Shard({s: [] for s in harvest.sites}, [], []), 0, 0

    def goes_on() -> bool:
        if known or not made.chunks:
            return len(made.chunks) < (known or 1)
        return n < wanted and size + size // len(made.chunks) <= SHARD_BYTES

    while goes_on():
        number = first + len(made.chunks)
        rows = harvest.chunk(number)
        order = harvest.order(number, harvest.n_rows)
        for site, value in rows.items():
            permuted = value.index_select(0, order.to(value.device)).to("cpu", dtype)
            made.rows[site].append(permuted)
            size += permuted.nbytes
        made.origin.append(harvest.origin[order])
        made.chunks.append(harvest.n_rows)
        n += harvest.n_rows
    return made


class Writer:
    """Writes a shard while the next is harvested. What goes wrong is raised when the next is given, or at the end,
    which waits for it: a folder is never left with somebody writing to it."""

    def __init__(self, stored: Activations) -> None:
        self.stored, self._pool = stored, ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, number: int, shard: Shard) -> None:
        self.wait()
        self._last = self._pool.submit(self.stored.write, number, *shard)

    def wait(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self.wait()
