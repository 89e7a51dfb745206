"""`bench step`: what a training step costs, in fp32 products of its own encoder, beside other libraries."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from understudy.core.candidates import Searched, largest_of_candidates
from understudy.core.memory import give_back
from understudy.core.narrow import NARROW
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._benching.machine import check_out, keep, machine
from understudy.workflows._benching.memory import forget_peak, peak_mib, resident_mib
from understudy.workflows._benching.quiet import Watch
from understudy.workflows._benching.ratio import LEAST, WIDE, Ratio, Turns, in_turns
from understudy.workflows._benching.step_ours import Ours, Shape
from understudy.workflows._benching.step_peers import LIBRARIES, Peer, PeerEnded, pythons
from understudy.workflows._benching.stopwatch import Stopwatch

WARM_UP = 3
"""Steps before anything is timed."""
COMPARED = LEAST
"""Timed steps after which FVU is given: as many are taken at every speed."""
PEER_WARM_UP_S = 20.0
"""Seconds of a peer's untimed steps after which no more are taken."""


class BenchStepConfig(Config):
    """Which steps are timed, and beside whom."""

    shapes: str = "512x8192x32x2048,768x24576x32x4096,1024x65536x64x4096"
    """Width x latents x latents kept x places a step, separated by commas."""
    search: str = "fp32,bf16,int8"
    """How the k largest are found: fp32, bf16, int8 or several of them."""
    repeats: Annotated[int, Field(ge=LEAST)] = 7
    """Timed turns of a floor and a step, at least."""
    seconds: NonNegativeFloat = 40.0
    """More turns are taken until a ratio's interval is within 5% of it, or the steps have taken so long."""
    peers: bool = False
    """Time other libraries too: those in `peers_folder`, or the python that UNDERSTUDY_PEERS names."""
    peers_folder: Path = Path("benchmarks/peers")
    """An environment for each, as `make bench-peers` makes them."""
    peers_keep_memory: bool = False
    """Give the other libraries the settings for memory that `understudy` gives itself; else they run as they come."""
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
    give_back()
    forget_peak()
    empty = resident_mib()
    ours = Ours(shape, search)
    for _ in range(WARM_UP):
        ours.step(ours.next())
    peak = peak_mib()
    fvus: list[float] = []

    def step() -> float:
        rows = ours.next()
        start = time.perf_counter()
        terms = ours.step(rows)
        seconds = time.perf_counter() - start
        fvus.append(float(terms["fvu"]))
        return seconds

    x, W, _ = ours.encoder(ours.next())
    turns = in_turns(_floor(x, W), step, config.repeats, config.seconds)
    parts = _parts(ours, 2)
    row: dict[str, Any] = {
        "shape": shape._asdict(), "dtype": search, "ours_s": statistics.median(turns.step), **_floors(turns),
        "floor_gflops": [round(2 * shape.batch * shape.d * shape.n / f / 1e9, 1) for f in turns.floor],
        "peak_mib": None if peak is None or empty is None else peak - empty,
        "parameters_and_optimiser_mib": 3 * _parameters_mib(ours), "fvu": fvus[COMPARED - 1],
        "steps": WARM_UP + COMPARED, "parts": {k: v / min(turns.floor) for k, v in parts.items()},
        "peers_s": {}, "ratio_fastest_peer": None,
    }  # fmt: skip
    if search in NARROW:
        searched = Searched()
        largest_of_candidates(*ours.encoder(ours.next()), shape.k, search, searched)
        row["candidates"] = searched.candidates / max(1, searched.rows - searched.whole_rows)
        row["rows_in_fp32"] = searched.whole_rows / searched.rows
    return row


def _floor(x: Tensor, W: Tensor) -> Callable[[], float]:
    """Times one fp32 product of the encoder, into memory that is held already."""
    product = torch.mm(x, W.T)

    def once() -> float:
        start = time.perf_counter()
        torch.mm(x, W.T, out=product)
        return time.perf_counter() - start

    return once


def _floors(turns: Turns) -> dict[str, Any]:
    """A step in floors, for the record."""
    each = [round(s / f, 3) for s, f in zip(turns.step, turns.floor, strict=True)]
    found = turns.ratio
    return {
        "floor_s": statistics.median(turns.floor), "ratio_floor": found.value,
        "ratio_floor_interval": found.interval, "ratio_floor_each": each,
    }  # fmt: skip


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
    give_back()
    for library in LIBRARIES:
        progress.say(f"{'x'.join(map(str, shape))}: {library}")
        watch.look()
        python = pythons(config.peers_folder)[library]
        with Peer(library, python, shape, keeps_memory=config.peers_keep_memory) as peer:
            found[library] = _beside(peer, shape, config)
    for row in rows:
        row["peers_s"] = {k: v.get("seconds", v.get("not_measured")) for k, v in found.items()}
        row["peers"] = found
        ratios = {k: _again(v).over(_again(row)) for k, v in found.items() if "ratio_floor" in v}
        row["ratio_peers"] = {k: r.value for k, r in ratios.items()}
        row["ratio_peers_interval"] = {k: r.interval for k, r in ratios.items()}
        row["ratio_fastest_peer"] = min(row["ratio_peers"].values(), default=None)


def _again(found: dict[str, Any]) -> Ratio:
    """Of a step that was timed, from its turns."""
    each = found["ratio_floor_each"]
    return Ratio.of(each, [1.0] * len(each))


def _beside(peer: Peer, shape: Shape, config: BenchStepConfig) -> dict[str, Any]:
    """Seconds of the peer's step, and in floors."""
    if peer.reason:
        return {"not_measured": peer.reason}
    warm = [peer.step()]
    while len(warm) < WARM_UP and sum(warm) < PEER_WARM_UP_S and not peer.reason:
        warm.append(peer.step())
    if peer.reason:
        return {"not_measured": peer.reason}
    floor = _floor(torch.randn(shape.batch, shape.d), torch.randn(shape.n, shape.d))
    try:
        turns = in_turns(floor, peer.timed_step, LEAST, config.seconds)
    except PeerEnded:
        return {"not_measured": peer.reason}
    return {
        "seconds": statistics.median(turns.step), **_floors(turns), "steps": len(turns.step),
        "peak_mib": peer.extra_mib,
    }  # fmt: skip


def _complaints(watch: Watch, rows: list[dict[str, Any]]) -> list[str]:
    """Why nothing can be concluded."""
    out = [watch.seen.others] if watch.seen.others else []
    for row in rows:
        shape = "x".join(str(v) for v in row["shape"].values())
        timed = {f"{shape} {row['dtype']}": row} | {f"{shape} {k}": v for k, v in row.get("peers", {}).items()}
        for name, found in timed.items():
            if "ratio_floor" in found and not _again(found).within(WIDE):
                low, high = found["ratio_floor_interval"]
                out.append(f"{name} took {low:.2f} to {high:.2f} floors in {len(found['ratio_floor_each'])} turns")
    return list(dict.fromkeys(out))
