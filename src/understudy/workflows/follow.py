"""`follow`: show a run's metrics in TensorBoard or Weights & Biases, while it goes on or afterwards.

It reads metrics.jsonl, so training knows nothing of it: it can start late, stop early, and be run again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config, read_yaml
from understudy.core.records.errors import BadFolder, UnknownName
from understudy.core.records.metric import Record
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._following.writers import WRITERS, Writer


class FollowConfig(Config):
    """Which run, and where to show it."""

    run: Path
    """Folder of a run, or of an ablation or a scaling grid, whose cells are then shown beside each other."""
    to: str = "tensorboard"
    """tensorboard or wandb; each is an extra: pip install "understudy[tensorboard]"."""
    log: Path | None = None
    """Folder for what is written; by default `log` in the run's own."""
    wait: bool = False
    """Go on until every run there is finished; otherwise write what is there and stop."""
    every_s: PositiveFloat = 2.0
    """Seconds between looks."""


class Followed(Record):
    """What was written."""

    to: str
    log: Path
    runs: int
    lines: int
    """Of metrics.jsonl, those written again after a kill counted again."""

    def __str__(self) -> str:
        shown = f"\ntensorboard --logdir {self.log}" if self.to == "tensorboard" else ""
        return f"{self.lines} lines of {self.runs} run{'s' if self.runs != 1 else ''} written to {self.log}{shown}"


@dataclass
class _Shown:
    """What of a run is written, and where."""

    writer: Writer
    lines: list[dict[str, Any]] = field(default_factory=list)


def follow(config: FollowConfig, progress: Progress = SILENT) -> Followed:
    """Raises UnknownName for a viewer that is none, BadFolder for what is no run, BadInput for one not installed."""
    if config.to not in WRITERS:
        raise UnknownName.among("viewer (--to)", config.to, WRITERS)
    log = config.log or config.run / "log"
    shown: dict[Path, _Shown] = {}
    lines = 0
    try:
        while True:
            folders = _runs(config.run)
            finished = all(f.file("groups.json").exists() for f in folders)  # looked at before the lines
            for folder in folders:
                lines += _show(shown, folder, config.to, log)
            if not config.wait or (finished and folders):
                break
            time.sleep(config.every_s)
    finally:
        for one in shown.values():
            one.writer.close()
    progress.say(f"{lines} lines shown")
    return Followed(to=config.to, log=log, runs=len(shown), lines=lines)


def _runs(path: Path) -> list[RunFolder]:
    """The run, or the cells of a grid. Raises BadFolder."""
    folder = RunFolder.open(path)
    if (path / "cells").is_dir():
        return [RunFolder(p.parent) for p in sorted((path / "cells").glob("*/config.yaml"))]
    if folder.file("groups.json").exists() and not folder.file("metrics.jsonl").exists():
        raise BadFolder(f"{path} has no metrics.jsonl: what it holds was not trained there.")
    return [folder]


def _show(shown: dict[Path, _Shown], folder: RunFolder, to: str, log: Path) -> int:
    """Write a run's new lines; how many. Where a run that was killed has gone on from further back, what no longer
    stands in its file is written again."""
    lines = folder.metrics()
    one = shown.get(folder.path)
    if one is None:
        one = shown[folder.path] = _Shown(_writer(folder, to, log, 0))
    same = next((i for i, (a, b) in enumerate(zip(one.lines, lines, strict=False)) if a != b), len(lines))
    if same < len(one.lines):
        one.writer.close()
        one.lines = one.lines[:same]
        one.writer = _writer(folder, to, log, one.lines[-1]["places"] + 1 if one.lines else 0)
    new = lines[len(one.lines) :]
    for line in new:
        one.writer.write(line["places"], dict(_scalars(line)))
    one.lines += new
    return len(new)


def _writer(folder: RunFolder, to: str, log: Path, again_from: int) -> Writer:
    return WRITERS[to](log, folder.path.name, read_yaml(folder.file("config.yaml")), again_from)


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for group, terms in line["groups"].items():
        for name, value in terms.items():
            yield f"{name}/{group}", value
