"""Stored: rows from a folder of activations, served as a harvest of the network would serve them."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.data import Activations, Order
from understudy.workflows._runs import fingerprint
from understudy.workflows._training.harvest import Harvest, in_batches, row_order

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

BLOCK_ROWS = 64
"""Neighbouring rows that are read at a time where order is drawn anew: single rows read 18 times slower from a disk."""
CHUNK_BYTES = 256 << 20


class Stored:
    """The first time through, with the seed they were collected with, chunks are served as they are: as `Harvest`
    serves them, bit for bit. After that, and with other seeds, a chunk is random blocks of rows from all, permuted.
    """

    def __init__(self, found: Activations, sites: Sequence[Site], seed: int, device: torch.device) -> None:
        self.found, self.sites, self.seed, self.device = found, list(sites), seed, device
        shards = found.manifest.shards
        self._chunks = [(i, slice(end - n, end)) for i, s in enumerate(shards) for n, end in _ends(s.chunks)]
        self.in_order = len(self._chunks) if seed == found.manifest.seed else 0
        """Chunks that are served as they were written."""
        self._first = np.cumsum([0, *(-(-s.rows // BLOCK_ROWS) for s in shards)])
        row_bytes = 4 * sum(found.manifest.sites[str(s)] for s in self.sites)
        self._blocks = min(int(self._first[-1]), max(1, CHUNK_BYTES // (row_bytes * BLOCK_ROWS)))
        self._order = Order(int(self._first[-1]), seed)
        self.digest = sha256(found.manifest.model_dump_json().encode()).hexdigest()[:16]
        self.provenance = {"activations": self.digest}

    def batches(self, number: int, size: int, skip: int = 0) -> Iterator[dict[Site, Tensor]]:
        """Rows of a chunk, `size` at a time, the first `skip` batches left out. Raises BadActivations."""
        if number < self.in_order:
            shard, at = self._chunks[number]
            for start in range(at.start + skip * size, at.stop, size):
                rows = self.found.rows(shard, slice(start, min(start + size, at.stop)), self.sites)
                yield {site: value.to(self.device) for site, value in rows.items()}
            return
        rows = self._drawn(number - self.in_order)
        order = row_order(self.seed, number, len(next(iter(rows.values()))))
        for batch in in_batches(rows, order, size, skip):
            yield {site: value.to(self.device) for site, value in batch.items()}

    def _drawn(self, number: int) -> dict[Site, Tensor]:
        """Blocks in the order of a stream that goes through all of them again and again."""
        parts = []
        for block in self._order.batch(number, self._blocks).sort().values.tolist():
            shard = int(np.searchsorted(self._first, block, "right")) - 1
            start = (block - int(self._first[shard])) * BLOCK_ROWS
            parts.append(self.found.rows(shard, slice(start, start + BLOCK_ROWS), self.sites))
        return {site: torch.cat([part[site] for part in parts]) for site in self.sites}


def _ends(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(counts, accumulate(counts), strict=True)


def open_stored(config: "TrainConfig", folder: RunFolder, harvest: Harvest, progress: Progress) -> Stored:
    """The activations that `config` names, if they fit what is trained and are those the run began with. Raises
    BadInput, BadFolder, BadActivations."""
    assert config.activations is not None
    found = Activations.open(config.activations)
    path, manifest, network = config.activations, found.manifest, harvest.network
    if manifest.weights != fingerprint(network):
        raise BadInput(
            f"{path} holds activations of {manifest.network} with other weights than those of {network.name}: they are "
            "not mixed. Give the same --network, or collect again."
        )
    lacking = [str(s) for s in harvest.sites if manifest.sites.get(str(s)) != network.width(s)]
    if lacking:
        raise BadInput(
            f"{path} holds {', '.join(manifest.sites)}, not {', '.join(lacking)}. Collect with --sites for it."
        )
    other = [k for k in ("data", "context", "skip_first") if getattr(config, k) != getattr(manifest, k)]
    if other:
        was = ", ".join(f"--{k.replace('_', '-')} {getattr(manifest, k)}" for k in other)
        raise BadInput(
            f"{path} was collected with {was} (None: left out). Thresholds are fitted and checked on what the network "
            "computes itself, so give the same here."
        )
    stored = Stored(found, harvest.sites, harvest.seed, network.device)
    before = folder.read_json("provenance.json") if folder.file("provenance.json").exists() else {}
    if before.get("activations", stored.digest) != stored.digest:
        raise BadInput(f"{path} is not what the run began with: shards were added or changed. Start a new run.")
    _say(stored, harvest, progress)
    return stored


def _say(stored: Stored, harvest: Harvest, progress: Progress) -> None:
    manifest = stored.found.manifest
    same = manifest.n_sequences == len(harvest.sequences) and manifest.chunk_sequences == harvest.chunk_sequences
    order = "random blocks of all shards, as --seed is not the one they were collected with"
    if stored.in_order:
        equal = same and manifest.dtype == "float32"
        order = "the order of the shards" + (", which is that of training without them" if equal else "")
    progress.say(f"reading {manifest.rows:,} places from {stored.found.folder.path}, at first in {order}")
