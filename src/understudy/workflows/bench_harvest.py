"""`bench harvest`: what harvesting and shuffling cost beside the network's bare forward pass."""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.data import Activations
from understudy.workflows._benching.machine import check_folder, check_out, keep, machine
from understudy.workflows._benching.quiet import Watch
from understudy.workflows._benching.ratio import LEAST, WIDE, Ratio
from understudy.workflows._data import open_sequences
from understudy.workflows._opening import open_network
from understudy.workflows._training import harvest as harvesting
from understudy.workflows._training.aims import objective
from understudy.workflows._training.build import plan
from understudy.workflows._training.decided import decided
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.shards import Writer, make_shard
from understudy.workflows._training.trainer import Trainer
from understudy.workflows.collect import CollectConfig, manifest_of
from understudy.workflows.train import TrainConfig, check_config, chunk_sequences, start, starting_sample


class BenchHarvestConfig(Config):
    """What is harvested. Other choices are those of `understudy train`."""

    network: str = "demo"
    """demo, demo:NAME, organism:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    kind: str = "transcoder"
    """Kind of dictionary: decides what is read at `sites`."""
    sites: str = "mlp"
    """Short names, globs, paths or TransformerLens names, separated by commas."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence."""
    n_latents: PositiveInt = 1024
    """Latents of each dictionary that is trained for comparison."""
    batch: PositiveInt = 2048
    """Places a step."""
    repeats: Annotated[int, Field(ge=LEAST)] = 9
    """Chunks that are timed, and shards."""
    folder: Path = Path()
    """Where shards are written to be timed. They are removed again."""
    out: Path | None = None
    """File for the same JSON."""


def bench_harvest(config: BenchHarvestConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Rates in places a second, and their ratios to the network's bare forward pass up to the last site that is read:
    harvesting one chunk after another as `train` does, and making shards while the one before is written, as `collect`
    does. All in turns over the same batches. Shuffling is given as a share of harvesting and shuffling, and of a
    training run. `conclusive` is false, and `exit_code` 1, where other work ran or a ratio's interval is wide."""
    options = {k: v for k, v in config if k not in ("repeats", "folder", "out")}
    training = decided(TrainConfig(**options))
    check_config(training)
    check_out(config.out)
    check_folder(config.folder)
    if objective(training, 0).needs != "rows":
        raise BadInput(f"{config.kind} trains on whole sequences: nothing is shuffled, so there is nothing to compare.")
    network = open_network(config.network, device="cpu")
    what, watch = plan(network, config.kind, config.sites), Watch()
    sequences = open_sequences(network, config.data, "train", config.context, 2_000_000)
    chunk = chunk_sequences(network, sequences, what.sites)
    harvest = Harvest(network, sequences, what.sites, 0, chunk)
    trainer = start(training, network, starting_sample(harvest), what)
    watch.look()
    spent = _trained(harvest, trainer, config, progress)
    rows = harvest.n_rows
    bare, places, collected = _collected(harvest, config, progress)
    watch.look()
    seconds = {name: statistics.median(values) for name, values in spent.items()}
    ratio, collect_ratio = Ratio.of(spent["bare"], spent["harvest"]), Ratio.of(bare, collected)
    complaints = [watch.seen.others] if watch.seen.others else []
    for name, found in (("harvesting", ratio), ("collecting", collect_ratio)):
        if not found.within(WIDE):
            complaints.append("{} ran at {:.2f} to {:.2f} of the bare pass".format(name, *found.interval))
    found = {
        "conclusive": not complaints, "complaints": complaints, "exit_code": 1 if complaints else 0,
        "network": network.name, "sites": [str(s) for s in what.sites], "places_a_chunk": rows,
        "bytes_a_place": 4 * sum(network.width(s) for s in what.sites),
        "bare_rate": rows / seconds["bare"], "harvest_rate": rows / seconds["harvest"],
        "ratio": ratio.value, "ratio_interval": ratio.interval,
        "collect_rate": places / statistics.median(collected), "collect_ratio": collect_ratio.value,
        "collect_ratio_interval": collect_ratio.interval,
        "shuffle_of_harvest": seconds["shuffle"] / (seconds["harvest"] + seconds["shuffle"]),
        "shuffle_of_run": seconds["shuffle"] / (seconds["harvest"] + seconds["shuffle"] + seconds["train"]),
        "seconds": seconds, "machine": machine(watch),
    }  # fmt: skip
    return keep(found, config.out)


def _trained(
    harvest: Harvest, trainer: Trainer, config: BenchHarvestConfig, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each part of training on a chunk, and of the bare pass."""
    spent: dict[str, list[float]] = {"bare": [], "harvest": [], "shuffle": [], "train": []}
    with progress.task("timing training", config.repeats, "chunks") as task:
        for number in range(1, config.repeats + 1):
            batches = _batches(harvest, number)
            with _timed(spent["bare"]):
                _bare(harvest.network, batches, harvest.sites)
            with _timed(spent["harvest"]):
                rows = harvest.chunk(number)
            with _timed(spent["shuffle"]):
                served = list(harvest.shuffled(rows, number, config.batch))
            with _timed(spent["train"]):
                for acts in served:
                    trainer.train_step(acts)
            task.update(number)
    return spent


def _collected(
    harvest: Harvest, config: BenchHarvestConfig, progress: Progress
) -> tuple[list[float], int, list[float]]:
    """Seconds of the bare pass over the chunks of a shard, places of one, and seconds of making it while the one before
    is written: until both are done."""
    bare, collected, places = [], [], 0
    about = CollectConfig(network=config.network, kind=config.kind, sites=config.sites, data=config.data)
    with (
        TemporaryDirectory(prefix=".understudy-", dir=config.folder) as folder,
        progress.task("timing shards", config.repeats, "shards") as task,
    ):
        stored = Activations(RunFolder(folder), manifest_of(about, harvest))
        with Writer(stored) as writer:
            shard = make_shard(harvest, stored.dtype, 0, None, sys.maxsize)
            chunks = len(shard.chunks)
            for number in range(config.repeats):
                numbers = range((number + 1) * chunks, (number + 2) * chunks)
                batches = [batch for n in numbers for batch in _batches(harvest, n)]
                with _timed(bare):
                    _bare(harvest.network, batches, harvest.sites)
                with _timed(collected):
                    writer.write(0, shard)
                    shard = make_shard(harvest, stored.dtype, numbers[0], chunks, 0)
                    writer.wait()
                places = sum(shard.chunks)
                task.update(number + 1)
    return bare, places, collected


def _batches(harvest: Harvest, number: int) -> list[Batch]:
    """What `harvest.chunk(number)` runs, ready."""
    picked = harvest._order.batch(number, harvest.chunk_sequences)
    size = harvesting.FORWARD_SEQUENCES
    return [harvest.sequences.batch(picked[i : i + size]) for i in range(0, len(picked), size)]


class _Reached(Exception):
    """The last site that is read has fired."""


@torch.no_grad()
def _bare(network: Network, batches: Sequence[Batch], sites: Sequence[Site]) -> None:
    """The forward pass alone, stopped where nothing further is needed. Nothing is kept."""
    waiting: set[Site] = set()

    def fired(site: Site) -> None:
        waiting.discard(site)
        if not waiting:
            raise _Reached

    modules = dict(network.module.named_modules())
    handles = []
    for site in (s for s in sites if not s.is_input):
        module = modules[site.module]
        if site.port == "in":
            handles.append(module.register_forward_pre_hook(lambda *_, s=site: fired(s)))
        else:
            handles.append(module.register_forward_hook(lambda *_, s=site: fired(s)))
    try:
        for batch in batches:
            waiting.update(s for s in sites if not s.is_input)
            with suppress(_Reached):
                network.forward(batch)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    into.append(time.perf_counter() - begun)
