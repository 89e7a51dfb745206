"""Where the time of a step goes: functions that are timed while a context is open, each without what it calls."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by part, exclusive: what a timed function calls that is timed too is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []
        """For each timed function that is running, the time of those it called."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent

    @contextmanager
    def on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Inside, calls of `owner.name` are timed. A function, a method, a class or a static method."""
        own = name in vars(owner)
        found = vars(owner)[name] if own else getattr(owner, name)
        static = isinstance(found, staticmethod)
        inner = found.__func__ if static else found

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return inner(*args, **kwargs)

        setattr(owner, name, staticmethod(timed) if static else timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, found)
            else:
                delattr(owner, name)
