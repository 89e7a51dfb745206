"""Ctrl-C and SIGTERM between steps: the first asks, and the running step ends whole; the second does not wait."""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(AbstractContextManager["Interrupt"]):
    """`asked` turns True at the first of them. Outside the main thread signals belong to someone else: never True."""

    def __init__(self) -> None:
        self.asked = False
        self._mine = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interrupt":
        if self._mine:
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: Any) -> None:
        if self._mine:
            for number, before in self._before.items():
                signal.signal(number, before)
