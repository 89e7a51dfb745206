"""Other libraries' training steps, each in a process and an environment of its own."""

import json
import os
from pathlib import Path

import torch

from understudy.workflows._benching import step_rows
from understudy.workflows._benching.peer_process import NOT_INSTALLED, PeerProcess
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


class PeerEnded(Exception):
    """Its process ended within a step."""


class Peer(PeerProcess):
    """A library's step at one shape. `reason` says why it cannot run; else `step()` times one.

    extra_mib: the most memory it held, less what it held once torch was loaded.
    """

    def __init__(self, library: str, python: Path | None, shape: Shape, keeps_memory: bool = False) -> None:
        super().__init__(keeps_memory)
        self.reason = ""
        self.extra_mib: float | None = None
        if python is None:
            self.reason = NOT_INSTALLED
            return
        self._start(python, SCRIPT)
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

    def timed_step(self) -> float:
        """The same. Raises PeerEnded."""
        seconds = self.step()
        if self.reason:
            raise PeerEnded
        return seconds
