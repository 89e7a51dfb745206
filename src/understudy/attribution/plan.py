"""Plan: what a graph will take, said before the work begins."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from understudy.attribution.build import DENSE_BYTES, Limits, batch_of, rows_at_once
from understudy.attribution.local import LocalPass
from understudy.attribution.sources import Sources

EDGE_BYTES = 8
"""An edge on disk: its source and its weight, 4 bytes each."""
COPIES = 4
"""How often a chunk of dense rows, the gradients of a batch and finished edges are in memory at once, at most."""


@dataclass(frozen=True)
class Plan:
    """Counts, and bytes as upper bounds."""

    places: int
    latents: int
    """That are on, or shown silent."""
    rows: int
    """Of latents; those of the targets come on top."""
    sources: int
    """Latents, inputs, errors and biases: the length of a row before its largest edges are kept."""
    edges: int
    disk_bytes: int
    memory_bytes: int
    """While the graph is made, beyond the network and its dictionaries."""

    def __str__(self) -> str:
        more = "" if self.rows == self.latents else f" (the {self.rows:,} most influential get rows)"
        return (
            f"{self.places:,} places, {self.latents:,} latents{more}, at most {self.edges:,} edges: up to "
            f"{size(self.disk_bytes)} on disk, {size(self.memory_bytes)} of memory beyond the network"
        )


def plan(local: LocalPass, sources: Sources, limits: Limits) -> Plan:
    """What `build` will take."""
    latents = sum(map(len, sources.events))
    rows = min(limits.nodes, latents)
    edges = rows * min(limits.edges, sources.n)
    held = _bytes(local.tape.values.values()) + 2 * _bytes(local.leaves.values())
    gradients = batch_of(local, limits) * _bytes(local.leaves.values())
    # A pass from nothing, and prefixes, hold the like of what the clean pass holds.
    passes = 3 * held + sources.n_bytes
    dense = min(DENSE_BYTES, 4 * rows_at_once(sources) * sources.n)
    memory = passes + COPIES * (gradients + dense + EDGE_BYTES * edges)
    return Plan(
        places=max((shape[0] for shape in sources.shapes.values()), default=0),
        latents=latents,
        rows=rows,
        sources=sources.n,
        edges=edges,
        disk_bytes=EDGE_BYTES * edges,
        memory_bytes=memory,
    )


def size(n: int) -> str:
    """Bytes for people."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
