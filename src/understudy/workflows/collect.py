"""`collect`: write a network's activations to disk once, for `train --activations` to read as often as wanted."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadActivations, BadFolder, BadInput
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.data import ORIGIN, Activations, Manifest
from understudy.networks import open_network
from understudy.workflows._data import open_sequences
from understudy.workflows._runs import fingerprint
from understudy.workflows._training.build import plan
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.interrupt import Interrupt
from understudy.workflows._training.shards import Writer, make_shard
from understudy.workflows.train import Count, chunk_sequences

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
        manifest = manifest_of(config, harvest)
        stored = _stored(folder, manifest)
        progress.say(f"collecting {len(sites)} sites; shards go to {folder.path}")
        with nullcontext() if config.resume else folder.starting(config.to_yaml()):
            if not stored.manifest.shards:
                stored.write(0, *make_shard(harvest, stored.dtype, 0, None, config.tokens))
        _collect(config, harvest, stored, progress)
    return _found(stored)


def manifest_of(config: CollectConfig, harvest: Harvest) -> Manifest:
    """What a folder of these activations says of itself, without shards yet."""
    network = harvest.network
    return Manifest(
        network=network.name, weights=fingerprint(network), data=config.data, split="train", context=config.context,
        skip_first=config.skip_first, n_sequences=len(harvest.sequences), chunk_sequences=harvest.chunk_sequences,
        seed=config.seed, dtype=config.dtype, sites={str(s): network.width(s) for s in harvest.sites},
    )  # fmt: skip


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
        Writer(stored) as writer,
    ):
        while rows < config.tokens:
            there = stored.manifest.shards[number] if number < len(stored.manifest.shards) else None
            if there is None or not _is_whole(stored, number):
                made = make_shard(harvest, stored.dtype, chunks, there and len(there.chunks), config.tokens - rows)
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


def _is_whole(stored: Activations, number: int) -> bool:
    try:
        stored.shard(number)
    except BadActivations:
        return False
    return True


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
