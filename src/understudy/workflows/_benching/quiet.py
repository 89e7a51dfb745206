"""Is the machine quiet? Timings of two programs can be compared only where nothing else runs."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from understudy.core.records.metric import Record

BUSY = 0.15
"""Cores that other work may use."""
SPREAD = 0.8
"""Smallest rate over largest, of one product repeated between the runs."""


class Quiet(Record):
    """What the machine did between the runs."""

    busy_cores: float
    """Largest number of cores that other work used while this process slept."""
    encoder_gflops: list[float]
    """Rate of one encoder product, [2048, 192] x [192, 4096] on one thread, before each round and after the last."""

    @property
    def others(self) -> str:
        """Why nothing can be concluded even where things are timed in turns; empty where nobody else worked."""
        return f"other work used {self.busy_cores:.1f} cores" if self.busy_cores > BUSY else ""

    @property
    def complaint(self) -> str:
        """Why nothing can be concluded; empty where the machine was quiet."""
        if self.others:
            return self.others
        if min(self.encoder_gflops) < SPREAD * max(self.encoder_gflops):
            low, high = min(self.encoder_gflops), max(self.encoder_gflops)
            return f"one product ran at {low:.0f} to {high:.0f} GFLOP/s"
        return ""


@dataclass
class Watch:
    """Looks at the machine whenever it is asked to."""

    def __post_init__(self) -> None:
        self.busy: list[float] = []
        self.rates: list[float] = []

    def look(self) -> None:
        """A second of sleep, to see what others do, and a product."""
        self.busy.append(busy_cores())
        self.rates.append(encoder_rate())

    @property
    def seen(self) -> Quiet:
        return Quiet(busy_cores=max(self.busy), encoder_gflops=self.rates)


def busy_cores(seconds: float = 1.0) -> float:
    """Cores in use while this process sleeps; 0 where the system does not say."""
    before = _used()
    time.sleep(seconds)
    after = _used()
    if before is None or after is None:
        return 0.0
    return (after[0] - before[0]) / max(1e-9, after[1] - before[1]) * after[2]


def _used() -> tuple[float, float, int] | None:
    """Ticks spent working, ticks in all, and the number of cores."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    ticks = [int(x) for x in lines[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks), sum(line.startswith("cpu") for line in lines) - 1


def encoder_rate(repeats: int = 8) -> float:
    """GFLOP/s of an encoder product, the fastest of some."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, w = torch.randn(2048, 192), torch.randn(192, 4096)
        best = 1e9
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(x, w)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * 2048 * 192 * 4096 / best / 1e9
