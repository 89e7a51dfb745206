"""Progress on stderr: what is being done, its rate, the time left. Plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from understudy.core.records.progress import Progress, Task

QUIET_S = 10.0
"""Without a terminal, one line each 10 seconds."""


class TerminalProgress(Progress, AbstractContextManager["TerminalProgress"]):
    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]:>16}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=False,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "TerminalProgress":
        self.bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.stop()

    @contextmanager
    def task(self, what: str, total: float, unit: str = "") -> Iterator[Task]:
        yield _Shown(self, what, total, unit)

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


class _Shown(Task):
    def __init__(self, of: TerminalProgress, what: str, total: float, unit: str) -> None:
        self.of, self.what, self.total, self.unit = of, what, total, unit
        self.start = self.spoke = time.monotonic()
        self.first: float | None = None
        self.id: TaskID = of.bars.add_task(what, total=total, rate="", note="")

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.start = done, now
        elapsed, made = now - self.start, done - self.first
        rate = f"{_short(made / elapsed)} {self.unit}/s" if elapsed > 0.5 and made > 0 else ""
        self.of.bars.update(self.id, completed=done, rate=rate, note=note)
        if not self.of.console.is_terminal and now - self.spoke > QUIET_S:
            self.spoke = now
            left = f", {(self.total - done) * elapsed / made:.0f} s left" if made > 0 else ""
            print(f"{self.what}: {done / self.total:.0%} {rate}{left} {note}".rstrip(), file=sys.stderr, flush=True)


def _short(rate: float) -> str:
    return f"{rate / 1e6:.1f}M" if rate >= 1e6 else f"{rate / 1e3:.1f}k" if rate >= 1e3 else f"{rate:.1f}"
