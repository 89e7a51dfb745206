"""Finished rows beside a graph that is being made, so that work that was killed can go on."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.attribution import ChunkFolder
from understudy.core.batch import Batch
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.graph import GraphCard
from understudy.core.records.progress import Progress


@contextmanager
def kept_rows(out: Path, question: dict[str, Any], progress: Progress) -> Iterator[ChunkFolder]:
    """Where finished rows are kept until the graph is: OUT.part. Raises BadFolder where they are of another question,
    and while another process makes the same graph."""
    path = out.with_name(out.name + ".part")
    with RunFolder(path).locked("making a graph"):
        journal = ChunkFolder(path, question, {"torch": torch.__version__, "threads": torch.get_num_threads()})
        if journal.n_chunks:
            progress.say(f"carrying on from {journal.n_chunks} blocks of rows in {path}{journal.differs}")
        try:
            yield journal
        except KeyboardInterrupt:
            if journal.n_chunks:
                progress.say(f"finished rows are in {path}: the same command carries on from there")
            raise


def question(config: Config, card: GraphCard, batch: Batch) -> dict[str, Any]:
    """All that decides the rows of a graph, as JSON values."""
    given = {**batch.inputs, **({} if batch.mask is None else {"mask": batch.mask})}
    return {
        **config.model_dump(mode="json", exclude={"out", "check", "max_memory"}),
        "network's weights": card.network_fingerprint,
        "dictionaries": [d.fingerprint for d in card.dictionaries],
        "what the network reads": {name: _hash(value) for name, value in given.items()},
    }


def _hash(x: Tensor) -> str:
    plain = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode() + plain).hexdigest()[:16]
