"""Progress: long work shows itself. Workflows report here; faces decide how it looks."""

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One piece of long work with a known size. The base class says nothing."""

    def update(self, done: float, note: str = "") -> None:
        """`done` of the total so far, and what is being seen (a loss, a site)."""


class Progress:
    """What workflows call. The base class is silent; the command line shows bars with rate and time left."""

    @contextmanager
    def task(self, what: str, total: float, unit: str = "") -> Iterator[Task]:
        yield Task()

    def say(self, message: str) -> None:
        """One line: where results go, what was found, how to resume."""


SILENT = Progress()
