"""Other libraries' training steps, each in a process and an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from understudy.workflows._benching import step_rows
from understudy.workflows._benching.step_ours import Shape

SCRIPT = Path(__file__).parent / "peers" / "peer.py"
LIBRARIES = ("sae-lens", "eai-sparsify", "dictionary-learning")
"""Those that train. circuit-tracer, which `make bench-peers` installs too, makes graphs."""


def pythons(folder: Path | None) -> dict[str, Path | None]:
    """Which python runs each: FOLDER/LIBRARY/bin/python, else the one that UNDERSTUDY_PEERS names, if any."""
    one = os.environ.get("UNDERSTUDY_PEERS", "")
    found: dict[str, Path | None] = {}
    for library in LIBRARIES:
        own = folder / library / "bin" / "python" if folder else None
        found[library] = own if own and own.exists() else Path(one) if one else None
    return found


class Peer:
    """A library's step at one shape. `reason` says why it cannot run; else `step()` times one.

    extra_mib: the most memory it held, less what it held once torch was loaded.
    """

    def __init__(self, library: str, python: Path | None, shape: Shape) -> None:
        self.reason, self._process = "", None
        self.extra_mib: float | None = None
        if python is None:
            self.reason = "not installed: `make bench-peers`, or UNDERSTUDY_PEERS=/path/to/python"
            return
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        asked = {"library": library, "rows": step_rows.__file__, "threads": torch.get_num_threads(), **shape._asdict()}
        ready = self._ask(json.dumps(asked))
        self.reason = ready.get("error", "")
        self._empty_mib = ready.get("empty_mib", 0.0)

    def step(self) -> float:
        """Seconds of one training step."""
        found = self._ask("step")
        if "error" in found:
            self.reason = found["error"]
            return float("nan")
        self.extra_mib = found["peak_mib"] - self._empty_mib
        return found["seconds"]

    def _ask(self, line: str) -> dict[str, Any]:
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
