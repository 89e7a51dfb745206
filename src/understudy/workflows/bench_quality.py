"""`bench quality`: held-out FVU after equal places, beside other libraries, each at the best of its learning rates."""

import math
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT, Progress
from understudy.metrics import Reconstruction
from understudy.workflows._benching.machine import check_out, keep
from understudy.workflows._benching.quality_arms import OURS, PEERS, Cell, Diverged, Library, Task, cell
from understudy.workflows._benching.step_peers import pythons
from understudy.workflows.bench_step import one_shape

CHOOSING = 2048
"""Held-out rows that the learning rate is chosen on; figures are of others."""


class BenchQualityConfig(Config):
    """What is trained, on how much, and beside whom."""

    shape: str = "512x8192x32x2048"
    """Width x latents x latents kept x places a step."""
    steps: PositiveInt = 32
    """Steps of each run."""
    held: PositiveInt = 4096
    """Held-out rows that figures are taken on."""
    ratio: float = 3.0
    """Between neighbouring learning rates of the grid. Each library starts at its own, at 1 and at `ratio` times it,
    and goes on in the better direction until the best is no longer at the edge."""
    most: PositiveInt = 5
    """Learning rates of each library, at most; at least 3 are tried."""
    peers: bool = False
    """Train other libraries too: those in `peers_folder`, or the python that UNDERSTUDY_PEERS names."""
    peers_folder: Path = Path("benchmarks/peers")
    """An environment for each, as `make bench-peers` makes them."""
    cells: Path | None = None
    """Folder for what each run writes back, read again where it is there: a run that was stopped goes on."""
    seed: NonNegativeInt = 0
    """Decides starting points; the rows are the same for every seed."""
    threads: NonNegativeInt = 0
    """Of torch; 0: as many as there are."""
    out: Path | None = None
    """File for the same JSON."""


def bench_quality(config: BenchQualityConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """`arms`, one for each library: its best `lr` and `fvu` there, `grid`, `l0`; `difference`: our FVU minus the best
    peer's, paired over the same held-out rows. Raises BadInput."""
    if not 1 < config.ratio < float("inf"):
        raise BadInput(f"--ratio {config.ratio}: learning rates of a grid differ by a factor above 1, e.g. 3.")
    if config.most < 3:
        raise BadInput(f"--most {config.most}: a best that is not at the edge needs at least 3 learning rates.")
    if config.held < 2:
        raise BadInput(f"--held {config.held}: an interval needs at least 2 held-out rows.")
    task = Task(one_shape(config.shape, "--shape"), config.steps, CHOOSING + config.held, config.seed)
    check_out(config.out)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        with tempfile.TemporaryDirectory() if config.cells is None else nullcontext(config.cells) as folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            arms, sums = _arms(config, task, Path(folder), progress)
    finally:
        torch.set_num_threads(before)
    found = {
        "shape": task.shape._asdict(), "steps": task.steps, "places": task.steps * task.shape.batch,
        "held_out": config.held, "seed": config.seed, "torch": torch.__version__, "arms": arms, **_verdict(arms, sums),
    }  # fmt: skip
    return keep(found, config.out)


def _arms(
    config: BenchQualityConfig, task: Task, folder: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, Reconstruction]]:
    """Each library's row, and its sums over held-out rows."""
    held, rows, sums = task.held_out(), {}, {}
    where = pythons(config.peers_folder)
    for arm in (OURS, *PEERS) if config.peers else (OURS,):
        with Library(where[PEERS[arm]] if arm != OURS else None) as library:

            def tried(factor: float, arm: str = arm, library: Library = library) -> Cell | str:
                progress.say(f"{arm}: {task.steps} steps at {factor:g} times its own learning rate")
                return cell(arm, factor, task, library, folder)

            grid = walk(tried, held[:CHOOSING], config.ratio, config.most)
        kept = {f: c for f, (c, _) in grid.items() if isinstance(c, Cell)}
        if not kept:
            rows[arm] = {"not_measured": next(str(c) for c, _ in grid.values())}
            continue
        best = min(kept, key=lambda f: grid[f][1])
        sums[arm] = reconstruction(held[CHOOSING:], kept[best].hat[CHOOSING:])
        rows[arm] = {
            "library": kept[best].version, "lr": kept[best].lr, "factor": best, "l0": kept[best].l0,
            "fvu": sums[arm].fvu(Bootstrap(config.held)).model_dump(mode="json"),
            "is_at_edge": best in (min(grid), max(grid)),
            "grid": [_point(f, *grid[f]) for f in sorted(grid)],
        }  # fmt: skip
    return rows, sums


def _point(factor: float, found: Cell | str, fvu: float) -> dict[str, Any]:
    if isinstance(found, str):
        return {"factor": factor, "not_measured": found}
    return {"factor": factor, "lr": found.lr, "fvu_choosing": fvu}


def walk(
    tried: Callable[[float], Cell | str], held: Tensor, ratio: float, most: int
) -> dict[float, tuple[Cell | str, float]]:
    """Factors of the learning rate, each with what was trained and its FVU: from 1 and `ratio` on, towards lower FVU
    until the best has neighbours on both sides, or there are `most`. What cannot run at all is asked once; a run that
    diverged has infinite FVU."""
    grid: dict[float, tuple[Cell | str, float]] = {}
    at = 0
    while len(grid) < most:
        found = tried(ratio**at)
        if isinstance(found, str) and not isinstance(found, Diverged) and not grid:
            return {1.0: (found, float("inf"))}
        grid[ratio**at] = (found, float("inf") if isinstance(found, str) else _fvu(held, found.hat[: len(held)]))
        best = min(grid, key=lambda f: (grid[f][1], f))
        if min(grid) < best < max(grid):
            break
        at = round(math.log(best, ratio)) + (1 if best == max(grid) else -1)
    return grid


def _fvu(x: Tensor, hat: Tensor) -> float:
    """The value alone, for choosing."""
    return float(reconstruction(x, hat).fvu_draws(Bootstrap(len(x), n_resamples=0))[0])


def reconstruction(x: Tensor, hat: Tensor) -> Reconstruction:
    """Sums of the house's FVU: each held-out row is a sequence of one place."""
    sums = Reconstruction("made rows", len(x), x.double().mean(0).numpy())
    sums.update(x[:, None], hat[:, None], torch.arange(len(x)))
    return sums


def _verdict(arms: dict[str, Any], sums: dict[str, Reconstruction]) -> dict[str, Any]:
    """Our FVU minus that of the best other library."""
    others = {a: arms[a]["fvu"]["value"] for a in sums if a != OURS}
    if not others or OURS not in sums:
        return {"best_peer": None, "difference": None, "verdict": "nobody to compare with"}
    best = min(others, key=lambda a: others[a])
    figure = sums[OURS].fvu_difference(sums[best], Bootstrap(sums[best].n_sequences))
    said = "not measured"
    if isinstance(figure, Measured):
        said = "better" if figure.high < 0 else "worse" if figure.low > 0 else "not told apart"
    return {"best_peer": best, "difference": figure.model_dump(mode="json"), "verdict": said}
