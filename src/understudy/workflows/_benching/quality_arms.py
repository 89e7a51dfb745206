"""Dictionaries trained on the same made rows, ours and other libraries', and the held-out rows each writes back."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from understudy.core.records.errors import BadInput
from understudy.core.weights import load_tensors, save_tensors
from understudy.workflows._benching import step_rows
from understudy.workflows._benching.peer_process import NOT_INSTALLED, PeerProcess
from understudy.workflows._benching.step_ours import SAMPLE, SITE, Shape, trainer
from understudy.workflows.train import default_lr

SCRIPT = Path(__file__).parent / "peers" / "trained.py"
OURS = "understudy"
PEERS = {
    "sae-lens": "sae-lens", "eai-sparsify": "eai-sparsify", "eai-sparsify (Adam)": "eai-sparsify",
    "dictionary-learning": "dictionary-learning",
}  # fmt: skip
"""Arm -> whose environment it runs in."""


class Task(NamedTuple):
    """What every arm is given: a shape, how many steps, how many rows are held out, the seed of its starting point."""

    shape: Shape
    steps: int
    held: int
    seed: int

    @property
    def starting_seed(self) -> int:
        """Of starting points. Not the rows' own, 0: from it our start would be the directions that are to be found."""
        return self.seed + 1

    def held_out(self) -> Tensor:
        """The rows [held, d] that nobody trains on."""
        return step_rows.held_out(self.shape.d, self.shape.batch, self.steps, self.held)


class Cell(NamedTuple):
    """An arm at one learning rate. `hat` [held, d] is the held-out rows as it writes them back."""

    lr: float
    l0: float
    version: str
    hat: Tensor


class Diverged(str):
    """Why a run gave nothing, where a lower learning rate may."""


def cell(arm: str, factor: float, task: Task, library: "Library", folder: Path) -> Cell | str:
    """Train `arm` at `factor` times its own learning rate, or read from `folder` what was; a text says why it cannot.

    Raises BadInput where `folder` holds this arm under another task.
    """
    stem = folder / f"{arm.replace(' ', '').replace('(', '-').replace(')', '')}-{factor:g}"
    asked = {"arm": arm, **task.shape._asdict(), **task._asdict(), "factor": factor}
    del asked["shape"]
    record, out = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.safetensors")
    if not record.exists():
        if arm == OURS:
            found = _train(task, factor, out)
        else:
            found = library.ask(asked | {"seed": task.starting_seed, "rows": step_rows.__file__, "out": str(out)})
        if "error" in found:
            return found["error"]
        # Last and in one move, so that what has a record is whole.
        part = record.with_suffix(".part")
        part.write_text(json.dumps({"asked": asked, **found}) + "\n", encoding="utf-8")
        part.replace(record)
    return _read(record, out, asked)


def _read(record: Path, out: Path, asked: dict[str, Any]) -> Cell | str:
    said = json.loads(record.read_text(encoding="utf-8"))
    if said["asked"] != asked:
        changed = [f"{k}: {said['asked'].get(k)} -> {v}" for k, v in asked.items() if said["asked"].get(k) != v]
        raise BadInput(f"{record} is of another task ({'; '.join(changed)}). Name another --cells.")
    tensors = load_tensors(out)
    hat = tensors["hat"]
    if hat.shape != (asked["held"], asked["d"]):
        raise BadInput(
            f"{out} holds {tuple(hat.shape)}, not the {asked['held']} rows of {asked['d']} that were held out."
        )
    if not bool(torch.isfinite(hat).all()):
        return Diverged("diverged: not every held-out row is written back as finite numbers")
    return Cell(said["lr"], said["l0"], said["library"], hat)


def _train(task: Task, factor: float, out: Path) -> dict[str, Any]:
    """Ours, started from rows that it then trains on."""
    shape, lr = task.shape, factor * default_lr(task.shape.n)
    stream = step_rows.rows(shape.d, shape.batch)
    batches = -(-min(SAMPLE, task.steps * shape.batch) // shape.batch)
    first = [next(stream) for _ in range(batches)]
    ours = trainer(shape, task.steps, torch.cat(first), lr=lr, seed=task.starting_seed)
    for i in range(task.steps):
        ours.train_step({SITE: first[i] if i < batches else next(stream)})
    group, hats, l0 = ours.groups[0], [], 0.0
    with torch.no_grad():
        for x in task.held_out().split(1024):
            zs = [e.z for e in group.encode({SITE: x})]
            hats.append(group.write(zs, {SITE: x})[SITE])
            l0 += float(sum((z.values > 0).sum() for z in zs)) / task.held
    save_tensors(out, {"hat": torch.cat(hats)})
    return {"lr": lr, "l0": l0, "library": OURS}


class Library(PeerProcess):
    """A peer's process, in its own environment; it is started at the first question and imports its library once."""

    def __init__(self, python: Path | None) -> None:
        super().__init__()
        self._python = python

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Its answer, or `error`."""
        if self._python is None:
            return {"error": NOT_INSTALLED}
        if self._process is None:
            self._start(self._python, SCRIPT)
        return self._ask(json.dumps(asked | {"threads": torch.get_num_threads()}))
