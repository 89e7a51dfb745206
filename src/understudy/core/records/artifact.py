"""RunFolder: a run is a folder. What is in it is whole at every moment, whatever kills the process.

config.yaml          every value the run was started with
weights.safetensors  the finished dictionaries; groups.json says what the tensors are
metrics.jsonl        one line a logging interval, appended
thresholds.json      each group before and after its rule became thresholds
provenance.json      versions, processor, threads
checkpoints/N/       state after N steps: weights, optimiser, counters
scorecard.json, features.json, report.html   from evaluate and report
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.core.records.errors import BadFolder, DiskFull

KEPT_CHECKPOINTS = 2


class RunFolder:
    """A folder of a run. Every write goes to a temporary name, is synced, and is renamed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str) -> "RunFolder":
        """A new folder. Raises BadFolder if something is there already or it cannot be written."""
        folder = cls(path)
        if folder.path.is_file():
            raise BadFolder(f"{path} is a file; --out names a folder.")
        if folder.path.is_dir() and any(folder.path.iterdir()):
            known = (folder.path / "config.yaml").exists()
            also = "Continue it with --resume, or choose" if known else "Choose"
            raise BadFolder(f"{path} exists and is not empty. {also} another --out.")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_text(".writable", "")
            (folder.path / ".writable").unlink()
        except OSError as error:
            raise BadFolder(f"cannot write to {path}: {error.strerror}.") from None
        return folder

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """An existing run. Raises BadFolder."""
        folder = cls(path)
        if not folder.path.is_dir():
            near = sorted(p.parent.as_posix() for p in Path(path).absolute().parent.glob("*/config.yaml"))[:5]
            raise BadFolder(f"there is no run at {path}." + (f" Runs beside it: {', '.join(near)}." if near else ""))
        if not (folder.path / "config.yaml").exists():
            raise BadFolder(f"{path} is not a run: it has no config.yaml. `understudy train --out {path}` makes one.")
        return folder

    def file(self, name: str) -> Path:
        return self.path / name

    def write_text(self, name: str, text: str) -> Path:
        return self.write(name, lambda tmp: tmp.write_text(text))

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.file(name).read_text())
        except FileNotFoundError:
            raise BadFolder(f"{self.path} has no {name}.") from None
        except ValueError as error:
            raise BadFolder(f"{self.file(name)} is not valid JSON ({error}); it was cut short or edited.") from None

    def write(self, name: str, make: Callable[[Path], Any]) -> Path:
        """`make(temporary path)`, then sync and rename onto `name`. Raises DiskFull; the old file then still stands."""
        target = self.file(name)
        temporary = target.with_name(f".{target.name}.tmp")
        with disk_full(target):
            try:
                make(temporary)
                temporary.chmod(0o644)  # safetensors creates its files readable by the owner only
                _sync(temporary)
                os.replace(temporary, target)
                _sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return target

    # -- metrics ----------------------------------------------------------------------------------------------------

    def append_metrics(self, line: dict[str, Any]) -> None:
        with disk_full(self.file("metrics.jsonl")), self.file("metrics.jsonl").open("a") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines; a last line cut short by a kill is left out."""
        path = self.file("metrics.jsonl")
        if not path.exists():
            return []
        lines = []
        for text in path.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def truncate_metrics(self, step: int) -> None:
        """Forget lines after `step`: a resumed run writes them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, make: Callable[[Path], Any]) -> Path:
        """`make(folder)` fills a temporary folder, which is synced and renamed; older ones beyond two are removed."""
        root = self.file("checkpoints")
        temporary, final = root / f".{step}.tmp", root / str(step)
        with disk_full(final):
            for killed in root.glob(".*.tmp"):
                shutil.rmtree(killed, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                make(temporary)
                for path in temporary.iterdir():
                    _sync(path)
                shutil.rmtree(final, ignore_errors=True)
                os.rename(temporary, final)
                _sync(root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(root / str(old), ignore_errors=True)
        return final

    def checkpoints(self) -> list[int]:
        """Steps of whole checkpoints, oldest first."""
        root = self.file("checkpoints")
        return sorted(int(p.name) for p in root.glob("[0-9]*") if p.name.isdigit()) if root.exists() else []


@contextmanager
def disk_full(target: Path) -> Iterator[None]:
    """Turn a full disk or quota into DiskFull with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(
            f"no space left while writing {target}. What was saved before is whole: free some space and continue "
            "with --resume."
        ) from None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
