"""Ctrl-C between steps: the first one asks, and the step that is running ends whole; the second one does not wait."""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any


class Interrupt(AbstractContextManager["Interrupt"]):
    """`asked` turns True at the first Ctrl-C. Outside the main thread signals belong to someone else: never True."""

    def __init__(self) -> None:
        self.asked = False
        self._mine = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interrupt":
        if self._mine:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: Any) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, self._before)
