"""Cells trained together: each step harvests its rows once and serves them to every cell.

A cell ends as `understudy train` alone would have ended with its configuration, bit for bit on the same machine: its
rows depend on the seed and not on who else reads them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadWeights, NonFiniteLoss
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.workflows._runs import fingerprint, provenance, save_groups, save_weights
from understudy.workflows._training.build import Plan
from understudy.workflows._training.feed import Position, feed
from understudy.workflows._training.finish import folded
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.interrupt import Interrupt
from understudy.workflows._training.trainer import Trainer
from understudy.workflows.train import LOG_EVERY, TrainConfig, chunk_sequences, metrics_line, start, starting_sample

FIT_CHUNK = 1_000_003
"""Where in the order of the data the rows come from that thresholds are fitted on, as in a single run."""

STOPPED = "stopped.json"
"""Why a cell has no figures: its loss became no number."""


@dataclass(frozen=True)
class Bench:
    """What all cells of a grid share: the network, one site or part of it, and the text to train on."""

    network: Network
    what: Plan
    train: Sequences

    def harvest(self, seed: int) -> Harvest:
        chunk = chunk_sequences(self.network, self.train, self.what.sites)
        return Harvest(self.network, self.train, self.what.sites, seed, chunk)

    @property
    def site(self) -> Site:
        """The written site."""
        return self.what.groups[0][0][1][0]


@dataclass(frozen=True)
class Made:
    """A cell at its end."""

    config: TrainConfig
    trained: Group
    """Under the rule it was trained with."""
    final: Group
    """With a threshold for each latent, in the network's own units: what the run folder holds."""
    trainer: Trainer


def train_together(bench: Bench, configs: Sequence[TrainConfig], checkpoint_s: float, progress: Progress) -> list[Made]:
    """Train cells of one seed over one harvest; returns those that ended. One whose loss becomes no number leaves a
    stopped.json and the others go on.

    Goes on from the newest step that all of them have a checkpoint of. A folder is no finished run yet: see `keep`.
    Raises BadWeights, BadActivations; KeyboardInterrupt with everything saved.
    """
    folders = [RunFolder(c.out) for c in configs]
    harvest = bench.harvest(configs[0].seed)
    sample = starting_sample(harvest)
    running = {f.path.name: start(c, bench.network, sample, bench.what) for c, f in zip(configs, folders, strict=True)}
    for config, folder in zip(configs, folders, strict=True):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_text("config.yaml", config.to_yaml())
    position = _restore(folders, list(running.values()), progress)
    _loop(configs[0], folders, running, harvest, position, checkpoint_s, progress)
    rows = {s: v[: 1 << 15].clone() for s, v in harvest.chunk(FIT_CHUNK).items()}
    made = []
    with progress.task("fitting thresholds", len(configs), "cells") as task:
        for i, config in enumerate(configs):
            if trainer := running.get(config.out.name):
                made.append(_made(config, trainer, rows))
            task.update(i + 1, config.out.name)
    return made


@torch.no_grad()
def _made(config: TrainConfig, trainer: Trainer, rows: dict[Site, Tensor]) -> Made:
    trainer.use_averages()
    (group,) = trainer.groups
    final = folded(group.thresholded(rows))
    return Made(config, group.eval(), final.eval(), trainer)


def keep(bench: Bench, made: Made, write_sums: Callable[[], None]) -> None:
    """Write a cell's dictionaries, which makes its folder a finished run, then its figures; its checkpoints go last."""
    folder = RunFolder(made.config.out)
    save_weights(folder, [made.final])
    folder.write_json("provenance.json", provenance() | {"network weights": fingerprint(bench.network)})
    folder.write_json("thresholds.json", {})
    save_groups(folder, [made.final])
    write_sums()
    for step in folder.checkpoints():
        folder.drop_checkpoint(step)


def _loop(
    config: TrainConfig, folders: Sequence[RunFolder], running: dict[str, Trainer], harvest: Harvest,
    position: Position, checkpoint_s: float, progress: Progress,
) -> None:  # fmt: skip
    """Train to the end; a cell whose loss is no number leaves `running`."""
    by_name = {f.path.name: f for f in folders}
    saved_at, at = time.monotonic(), position
    done = next(iter(running.values())).places
    served = feed(harvest, next(iter(running.values())).objective.needs, config.batch, position)
    with progress.task(f"training {len(folders)} cells", config.tokens, "places") as task, Interrupt() as interrupt:
        task.update(done)
        while running and done < config.tokens and not interrupt.asked:
            step = next(served)
            for name, trainer in list(running.items()):
                try:
                    terms = trainer.train_step(step.acts, step.run)
                except NonFiniteLoss as error:
                    by_name[name].write_json(STOPPED, {"why": str(error)})
                    del running[name]
                    continue
                if trainer.step % LOG_EVERY == 0:
                    by_name[name].append_metrics(metrics_line(trainer, terms))
                done = trainer.places
            at = step.after
            task.update(done, f"{len(running)} cells")
            if time.monotonic() - saved_at > checkpoint_s:
                _save(by_name, running, at)
                saved_at = time.monotonic()
        _save(by_name, running, at)
    if interrupt.asked:
        progress.say(f"stopped and saved at {done:,} places of this pass.")
        raise KeyboardInterrupt


def _save(folders: dict[str, RunFolder], running: dict[str, Trainer], at: Position) -> None:
    for name, trainer in running.items():
        if trainer.step not in folders[name].checkpoints():
            folders[name].save_checkpoint(trainer.step, lambda path, t=trainer: t.save(path, at))


def _restore(folders: Sequence[RunFolder], trainers: Sequence[Trainer], progress: Progress) -> Position:
    """The newest step that every cell has a whole checkpoint of; the start where they share none.

    Raises BadWeights where they share some and none can be read.
    """
    shared = sorted(set.intersection(*(set(f.checkpoints()) for f in folders)), reverse=True)
    broken = []
    for step in shared:
        try:
            pairs = zip(folders, trainers, strict=True)
            states = [t.load(f.file(f"checkpoints/{step}")) for f, t in pairs]
        except BadWeights as error:
            broken.append(str(error))
            continue
        _forget_after(folders, step)
        progress.say(f"resuming {len(folders)} cells at {trainers[0].places:,} places")
        return {"chunk": states[0]["chunk"], "batch": states[0]["batch"]}
    if broken:
        raise BadWeights(f"no checkpoint that the cells share is whole ({'; '.join(broken)}). Remove these folders.")
    _forget_after(folders, 0)
    return {"chunk": 0, "batch": 0}


def _forget_after(folders: Sequence[RunFolder], step: int) -> None:
    for folder in folders:
        folder.truncate_metrics(step)
        for later in folder.checkpoints():
            if later > step:
                folder.drop_checkpoint(later)


def cell_bytes(config: TrainConfig, width: int) -> int:
    """Memory of a cell in training: weights, gradients and the two moments of Adam, fp32."""
    return 4 * 4 * (2 * width + 3) * config.n_latents


def blocks(configs: Sequence[TrainConfig], width: int, held_bytes: float) -> list[list[TrainConfig]]:
    """Cells that are trained together: of one seed, and as many as fit."""
    out: list[list[TrainConfig]] = []
    for config in sorted(configs, key=lambda c: c.seed):  # stable: the order within a seed stays
        size = cell_bytes(config, width)
        full = (
            not out or out[-1][0].seed != config.seed or sum(cell_bytes(c, width) for c in out[-1]) + size > held_bytes
        )
        if full:
            out.append([])
        out[-1].append(config)
    return out
