"""A script in another library's environment, asked line by line."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from understudy.core.memory import SAME

NOT_INSTALLED = "not installed: `make bench-peers`, or UNDERSTUDY_PEERS=/path/to/python"


class PeerProcess:
    """Started once; it answers each line with one of JSON, and is killed at the end of the block."""

    def __init__(self, keeps_memory: bool = False) -> None:
        """keeps_memory: with this command line's settings for memory, else with none of them."""
        self._process: subprocess.Popen[str] | None = None
        theirs = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", *SAME)}
        self._environment = theirs | (SAME if keeps_memory else {})

    def _start(self, python: Path, script: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=self._environment,
        )  # fmt: skip

    def _ask(self, line: str) -> dict[str, Any]:
        """Its answer, or `error` where it ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return {"error": f"its process ended with code {self._process.wait()} (memory?)"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
