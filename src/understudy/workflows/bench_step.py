"""`bench step`: what a training step costs, in fp32 products of its own encoder, beside other libraries."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt

from understudy.core.candidates import NARROW, Searched, largest_of_candidates
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._benching.machine import check_out, keep, machine
from understudy.workflows._benching.memory import forget_peak, peak_mib, resident_mib
from understudy.workflows._benching.quiet import Watch
from understudy.workflows._benching.step_ours import Ours, Shape
from understudy.workflows._benching.step_peers import LIBRARIES, Peer, pythons
from understudy.workflows._benching.stopwatch import Stopwatch

WARM_UP = 2
"""Steps before anything is timed."""
COMPARED = 3
"""Timed steps after which FVU is given: as many are taken at every speed."""
SECONDS = 10.0
"""Of timed steps, after which no further turn begins."""
MIN_RATE = 0.8
"""Of the floor: slowest over fastest in a row that something is concluded from."""


class BenchStepConfig(Config):
    """Which steps are timed, and beside whom."""

    shapes: str = "512x8192x32x2048,768x24576x32x4096,1024x65536x64x4096"
    """Width x latents x latents kept x places a step, separated by commas."""
    search: str = "fp32,bf16,int8"
    """How the k largest are found: fp32, bf16, int8 or several of them."""
    repeats: PositiveInt = 7
    """Timed turns of a floor and a step; fewer, but at least 3, where the steps take longer than 10 s together."""
    peers: bool = False
    """Time other libraries too: those in `peers_folder`, or the python that UNDERSTUDY_PEERS names."""
    peers_folder: Path = Path("benchmarks/peers")
    """An environment for each, as `make bench-peers` makes them."""
    threads: NonNegativeInt = 0
    """Of torch; 0: as many as there are."""
    out: Path | None = None
    """File for the same JSON."""


def bench_step(config: BenchStepConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """`rows`, a row for each shape and search, and what the machine was. `conclusive` is false, and `exit_code` 1,
    where other work ran: times are then given all the same."""
    shapes, searches = [one_shape(text, "--shapes") for text in config.shapes.split(",")], _searches(config.search)
    check_out(config.out)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        watch, rows = Watch(), []
        for shape in shapes:
            for search in searches:
                rows.append(_row(shape, search, config, watch, progress))
            if config.peers:
                _add_peers(rows[-len(searches) :], config, watch, progress)
        watch.look()
        seen = machine(watch)
    finally:
        torch.set_num_threads(before)
    complaints = _complaints(watch, rows)
    found = {
        "conclusive": not complaints, "complaints": complaints, "exit_code": 1 if complaints else 0, "rows": rows,
        "machine": seen,
    }  # fmt: skip
    return keep(found, config.out)


def one_shape(text: str, option: str) -> Shape:
    """Width x latents x k x places, as `option` was given it. Raises BadInput."""
    try:
        shape = Shape(*(int(part) for part in text.strip().split("x")))
    except (TypeError, ValueError):
        raise BadInput(f"{option} {text!r}: write width x latents x k x places, e.g. 512x8192x32x2048.") from None
    if min(shape) < 1 or shape.k > shape.n:
        raise BadInput(f"{option} {text!r}: every number is at least 1, and k at most the number of latents.")
    return shape


def _searches(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not set(found) <= {"fp32", *NARROW}:
        raise BadInput(f"--search {text!r}: some of fp32,{','.join(NARROW)}.")
    return found


def _row(shape: Shape, search: str, config: BenchStepConfig, watch: Watch, progress: Progress) -> dict[str, Any]:
    """Our step beside its floor, in turns."""
    progress.say(f"{'x'.join(map(str, shape))} {search}: our step")
    watch.look()
    forget_peak()
    empty = resident_mib()
    ours = Ours(shape, search)
    for _ in range(WARM_UP):
        ours.step(ours.next())
    peak = peak_mib()
    floor, step, fvu = _turns(ours, config.repeats)
    parts = _parts(ours, min(2, config.repeats))
    row: dict[str, Any] = {
        "shape": shape._asdict(), "dtype": search, "ours_s": statistics.median(step),
        "floor_s": statistics.median(floor), "ratio_floor": _ratio(step, floor),
        "ratio_floor_each": [round(s / f, 3) for s, f in zip(step, floor, strict=True)],
        "floor_gflops": [round(2 * shape.batch * shape.d * shape.n / f / 1e9, 1) for f in floor],
        "peak_mib": None if peak is None or empty is None else peak - empty,
        "parameters_and_optimiser_mib": 3 * _parameters_mib(ours), "fvu": fvu,
        "steps": WARM_UP + min(COMPARED, len(step)), "parts": {k: v / min(floor) for k, v in parts.items()},
        "peers_s": {}, "ratio_fastest_peer": None,
    }  # fmt: skip
    if search in NARROW:
        searched = Searched()
        largest_of_candidates(*ours.encoder(ours.next()), shape.k, search, searched)
        row["candidates"] = searched.candidates / max(1, searched.rows - searched.whole_rows)
        row["rows_in_fp32"] = searched.whole_rows / searched.rows
    return row


def _turns(ours: Ours, repeats: int) -> tuple[list[float], list[float], float]:
    """Seconds of the floor and of the step, in turns; and the FVU of the step after which rows are compared."""
    x, W, _ = ours.encoder(ours.next())
    product = torch.mm(x, W.T)
    floor, step, fvu = [], [], 0.0
    while len(step) < min(COMPARED, repeats) or (len(step) < repeats and sum(step) < SECONDS):
        start = time.perf_counter()
        torch.mm(x, W.T, out=product)
        floor.append(time.perf_counter() - start)
        rows = ours.next()
        start = time.perf_counter()
        terms = ours.step(rows)
        step.append(time.perf_counter() - start)
        fvu = float(terms["fvu"]) if len(step) <= COMPARED else fvu
    return floor, step, fvu


def _ratio(step: list[float], floor: list[float]) -> float:
    """Median over turns: what slows both down cancels."""
    return statistics.median(s / f for s, f in zip(step, floor, strict=True))


def _parts(ours: Ours, repeats: int) -> dict[str, float]:
    """Seconds of each part of a step, the least of some; what is left is `rest`."""
    least: dict[str, float] = {}
    for _ in range(repeats):
        watch, x = Stopwatch(), ours.next()
        with ours.watched(watch), watch.part("rest"):
            ours.step(x)
        least = {part: min(s, least.get(part, s)) for part, s in watch.seconds.items()}
    return least


def _parameters_mib(ours: Ours) -> float:
    return sum(p.numel() * p.element_size() for p in ours.trainer.groups[0].parameters()) / 2**20


def _add_peers(rows: list[dict[str, Any]], config: BenchStepConfig, watch: Watch, progress: Progress) -> None:
    """Each library's step in turns with the floor of its shape; one library is in memory at a time."""
    shape = Shape(**rows[0]["shape"])
    found: dict[str, Any] = {}
    for library in LIBRARIES:
        progress.say(f"{'x'.join(map(str, shape))}: {library}")
        watch.look()
        with Peer(library, pythons(config.peers_folder)[library], shape) as peer:
            found[library] = _beside(peer, shape)
    for row in rows:
        row["peers_s"] = {k: v.get("seconds", v.get("not_measured")) for k, v in found.items()}
        row["peers"] = found
        ratios = {k: v["ratio_floor"] / row["ratio_floor"] for k, v in found.items() if "ratio_floor" in v}
        row["ratio_peers"] = ratios
        row["ratio_fastest_peer"] = min(ratios.values(), default=None)


def _beside(peer: Peer, shape: Shape) -> dict[str, Any]:
    """Seconds of the peer's step, and in floors timed before each: up to 4 steps, but one where it takes 15 s."""
    if peer.reason:
        return {"not_measured": peer.reason}
    x, W = torch.randn(shape.batch, shape.d), torch.randn(shape.n, shape.d)
    product = torch.mm(x, W.T)
    floor, step = [], []
    while not step or (len(step) < 2 and sum(step) < 15) or (len(step) < 4 and sum(step) < 5):
        start = time.perf_counter()
        torch.mm(x, W.T, out=product)
        floor.append(time.perf_counter() - start)
        step.append(peer.step())
        if peer.reason:
            return {"not_measured": peer.reason}
    return {
        "seconds": statistics.median(step), "ratio_floor": _ratio(step, floor), "steps": len(step),
        "peak_mib": peer.extra_mib,
    }  # fmt: skip


def _complaints(watch: Watch, rows: list[dict[str, Any]]) -> list[str]:
    """Why nothing can be concluded."""
    out = [watch.seen.complaint] if watch.seen.complaint else []
    for row in rows:
        low, high = min(row["floor_gflops"]), max(row["floor_gflops"])
        if low < MIN_RATE * high:
            shape = "x".join(str(v) for v in row["shape"].values())
            out.append(f"the floor of {shape} ran at {low:.0f} to {high:.0f} GFLOP/s")
    return out
