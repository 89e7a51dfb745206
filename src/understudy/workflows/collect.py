"""`collect`: write a network's activations to disk once, for `train --activations` to read as often as wanted."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadActivations, BadFolder, BadInput
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.data import ORIGIN, Activations, Manifest
from understudy.networks import open_network
from understudy.workflows._data import open_sequences
from understudy.workflows._runs import fingerprint
from understudy.workflows._training.build import plan
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.interrupt import Interrupt
from understudy.workflows.train import Count, chunk_sequences

SHARD_BYTES = 250_000_000
"""Chunks go to a shard while this holds another; one alone has at most 256 MiB."""
MIXED = 2048
"""Rows of the batches whose mixing is looked at: what a step of training takes unless told otherwise."""


class CollectConfig(Config):
    """Which activations, of what."""

    network: str = "demo"
    """demo, demo:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    kind: str = "transcoder"
    """Kind of dictionary they are for: decides what is read at `sites`."""
    sites: str = "mlp"
    """Short names, globs, paths or TransformerLens names, separated by commas."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB, images:FOLDER or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    tokens: Count = 2_000_000
    """Places to collect, to the end of a shard; 500k, 2M and 1B are understood."""
    skip_first: NonNegativeInt | None = None
    """Places at the start of each row that are left out; by default as `understudy train` does."""
    seed: NonNegativeInt = 0
    """Decides which sequences come when, and the order of rows in a shard."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 takes half the room and rounds."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    out: Path = Path("activations")
    """Folder to write."""
    resume: bool = False
    """Continue in `out`: whole shards are kept, others written again."""


def collect(config: CollectConfig, progress: Progress = SILENT, network: Network | None = None) -> dict[str, Any]:
    """Write shards until they hold `tokens` places. Killed at any moment, `resume` goes on at the first shard that is
    not whole, and ends with the same bytes.

    `mixing` is the chance that two rows of a batch of 2048, in the order of the shards, are of one sequence;
    `mixing_of_all` what it is where all rows that were collected are shuffled together.
    """
    folder, config = _folder(config)
    network = network or open_network(config.network, device=config.device)
    sites = plan(network, config.kind, config.sites).sites
    network.probe(sites)
    with folder.locked("collecting"):
        sequences = open_sequences(network, config.data, "train", config.context, 2 * config.tokens, config.skip_first)
        harvest = Harvest(network, sequences, sites, config.seed, chunk_sequences(network, sequences, sites))
        manifest = Manifest(
            network=network.name, weights=fingerprint(network), data=config.data, split="train",
            context=config.context, skip_first=config.skip_first, n_sequences=len(sequences),
            chunk_sequences=harvest.chunk_sequences, seed=config.seed, dtype=config.dtype,
            sites={str(s): network.width(s) for s in sites},
        )  # fmt: skip
        stored = _stored(folder, manifest)
        progress.say(f"collecting {len(sites)} sites; shards go to {folder.path}")
        with nullcontext() if config.resume else folder.starting(config.to_yaml()):
            if not stored.manifest.shards:
                stored.write(0, *_shard(harvest, stored.dtype, 0, None, config.tokens))
        _collect(config, harvest, stored, progress)
    return _found(stored)


def _folder(config: CollectConfig) -> tuple[RunFolder, CollectConfig]:
    if not config.resume:
        return RunFolder.new(config.out), config
    folder = RunFolder.open(config.out)
    saved = CollectConfig.from_yaml(folder.file("config.yaml"))
    free = {"out", "resume", "device", "tokens"}
    if changed := config.changed_from(saved, free):
        raise BadInput(
            f"{config.out} was started with other values ({'; '.join(changed)}). Continue it as it was, or choose "
            "another --out."
        )
    if "tokens" in config.model_fields_set and config.tokens != saved.tokens and saved.data.startswith("hf:"):
        raise BadInput(
            f"--tokens {config.tokens}: how much of {saved.data} is read goes by it, so it stays {saved.tokens}."
        )
    tokens = config.tokens if "tokens" in config.model_fields_set else saved.tokens
    same = {"out": config.out, "resume": True, "device": config.device, "tokens": tokens}
    return folder, saved.model_copy(update=same)


def _stored(folder: RunFolder, wanted: Manifest) -> Activations:
    """What is there already, if it is of the same network and data. Raises BadInput."""
    try:
        found = Activations.read(folder)
    except BadFolder:
        return Activations(folder, wanted)
    changed = [k for k, v in found.manifest if k != "shards" and v != getattr(wanted, k)]
    if changed:
        raise BadInput(
            f"{folder.path} holds activations of another {', '.join(changed)}: they are not mixed. Choose another "
            "--out."
        )
    return found


def _collect(config: CollectConfig, harvest: Harvest, stored: Activations, progress: Progress) -> None:
    number, rows, chunks = 0, 0, 0
    with (
        progress.task("collecting", config.tokens, "places") as task,
        Interrupt() as interrupt,
        _Writer(stored) as writer,
    ):
        while rows < config.tokens:
            there = stored.manifest.shards[number] if number < len(stored.manifest.shards) else None
            if there is None or not _is_whole(stored, number):
                made = _shard(harvest, stored.dtype, chunks, there and len(there.chunks), config.tokens - rows)
                rows, chunks = rows + sum(made.chunks), chunks + len(made.chunks)
                writer.write(number, made)
                del made  # else it stays in memory while the next is harvested
            else:
                rows, chunks = rows + there.rows, chunks + len(there.chunks)
            number += 1
            task.update(min(rows, config.tokens), f"{number} shards")
            if interrupt.asked and rows < config.tokens:
                writer.wait()
                progress.say(f"stopped at {rows:,} places. Continue with: {stored.how_to_continue}")
                raise KeyboardInterrupt


class _Shard(NamedTuple):
    rows: dict[Site, Tensor]
    origin: Tensor
    """[rows, 2]: sequence and position."""
    chunks: list[int]
    """Rows of each chunk."""


class _Writer:
    """Writes a shard while the next is harvested. What goes wrong is raised when the next is given, or at the end,
    which waits for it: a folder is never left with somebody writing to it."""

    def __init__(self, stored: Activations) -> None:
        self.stored, self._pool = stored, ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, number: int, shard: _Shard) -> None:
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


def _is_whole(stored: Activations, number: int) -> bool:
    try:
        stored.shard(number)
    except BadActivations:
        return False
    return True


def _shard(harvest: Harvest, dtype: torch.dtype, first: int, known: int | None, wanted: int) -> _Shard:
    """Chunks from the `first` on in the order in which training would be served them, as many as the shard had where
    that is known, else until there are enough."""
    parts, origins, size, n = [], [], 0, 0

    def goes_on() -> bool:
        if known or not parts:
            return len(parts) < (known or 1)
        return n < wanted and size + size // len(parts) <= SHARD_BYTES

    while goes_on():
        rows = harvest.chunk(first + len(parts))
        order = harvest.order(first + len(parts), harvest.n_rows)
        parts.append({s: v[order.to(v.device)].to("cpu", dtype) for s, v in rows.items()})
        origins.append(harvest.origin[order])
        size += sum(v.nbytes for v in parts[-1].values())
        n += harvest.n_rows
    joined = parts[0] if len(parts) == 1 else {s: torch.cat([part[s] for part in parts]) for s in harvest.sites}
    return _Shard(joined, torch.cat(origins), [len(o) for o in origins])


def _found(stored: Activations) -> dict[str, Any]:
    manifest = stored.manifest
    mixing, of_all = mixed(stored)
    return {
        "folder": str(stored.folder.path), "network": manifest.network, "sites": list(manifest.sites),
        "dtype": manifest.dtype, "shards": len(manifest.shards), "places": manifest.rows,
        "bytes": sum(s.bytes for s in manifest.shards), "mixing": mixing.model_dump(),
        "mixing_of_all": of_all.model_dump(),
    }  # fmt: skip


def mixed(stored: Activations, size: int = MIXED) -> tuple[Measured, Measured]:
    """Chance that two rows of a batch are of one sequence: mean over all batches; and if all rows were shuffled."""
    chances, total = [], torch.zeros(stored.manifest.n_sequences, dtype=torch.long)
    for number in range(len(stored.manifest.shards)):
        sequence = stored.shard(number)[ORIGIN[0]].long()
        total += torch.bincount(sequence, minlength=len(total))
        chances += [_pairs(torch.bincount(part)) for part in sequence.split(size) if len(part) > 1]
    mean = sum(chances) / len(chances) if chances else 1.0
    return exact(mean, "fraction", len(chances)), exact(_pairs(total), "fraction", int(total.sum()))


def _pairs(counts: torch.Tensor) -> float:
    n = int(counts.sum())
    return float((counts * (counts - 1)).sum()) / max(1, n * (n - 1))
