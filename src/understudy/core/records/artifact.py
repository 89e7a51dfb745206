"""RunFolder: a run is a folder. What is in it is whole at every moment, whatever kills the process.

config.yaml          every value the run was started with
weights.safetensors  the finished dictionaries
groups.json          what the tensors are; written last, so that it marks a finished run
metrics.jsonl        one line a logging interval, appended
thresholds.json      each group before and after its rule became thresholds
provenance.json      versions, processor, threads of the newest session; sessions.json holds those of all, oldest first
checkpoints/N/       state after N steps: weights, optimiser, counters
scorecard.json, features.json, report.html   from evaluate and report
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from understudy.core.records.errors import BadFolder, DiskFull

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KEPT_CHECKPOINTS = 2
OWN = re.compile(r"\.lock|\.writable|\..*\.tmp")
"""What a killed process leaves behind: no run, and in nobody's way."""


class RunFolder:
    """A folder of a run. Every write goes to a temporary name, is synced, and is renamed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def new(cls, path: Path | str) -> "RunFolder":
        """A folder for a new run, not made yet. Raises BadFolder if something is there already."""
        folder = cls(path)
        if folder.path.is_file():
            raise BadFolder(f"{path} is a file; --out names a folder.")
        if folder.path.is_dir() and not all(OWN.fullmatch(p.name) for p in folder.path.iterdir()):
            known = (folder.path / "config.yaml").exists()
            also = "Continue it with --resume, or choose" if known else "Choose"
            raise BadFolder(f"{path} exists and is not empty. {also} another --out.")
        return folder

    @contextmanager
    def starting(self, config: str) -> Iterator[None]:
        """Write config.yaml, which makes this a run; it goes again if the block fails. Raises BadFolder.

        Needs the lock: of two processes that find the folder empty, one has it.
        """
        RunFolder.new(self.path)
        with self._writing():
            self.write_text("config.yaml", config)
        try:
            yield
        except BaseException:
            self.file("config.yaml").unlink(missing_ok=True)
            raise

    @contextmanager
    def locked(self, doing: str = "training") -> Iterator[None]:
        """This process's alone until the block or the process ends, however it ends.

        doing: what another process that wants the folder is told, in the BadFolder it raises. Makes the folder; folders
        made here and still empty afterwards are removed.
        """
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            held = self._lock(doing)
        try:
            yield
        finally:
            self.file(".lock").unlink(missing_ok=True)
            os.close(held)
            with suppress(OSError):
                for path in made:
                    path.rmdir()

    def _lock(self, doing: str) -> int:
        path = self.file(".lock")
        while True:
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and path.stat().st_ino == os.fstat(held).st_ino:
                    os.ftruncate(held, 0)
                    os.write(held, f"{doing} (process {os.getpid()})".encode())
                    return held
            except BlockingIOError:
                other = os.read(held, 200).decode(errors="replace") or "at work"
                os.close(held)
                raise BadFolder(
                    f"another process has {self.path}: {other}. Wait until it ends, or choose another --out."
                ) from None
            os.close(held)  # whoever had it has just ended and removed the file

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadFolder(f"cannot write to {self.path}: {error.strerror}.") from None

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
        return self.write(name, lambda tmp: tmp.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.file(name).read_text(encoding="utf-8"))
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
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
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
                _sync(temporary)
                self.drop_checkpoint(step)
                os.rename(temporary, final)
                _sync(root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            self.drop_checkpoint(old)
        return final

    def drop_checkpoint(self, step: int) -> None:
        """Remove a checkpoint if it is there: out of sight in one move, so that no kill leaves half of one in sight."""
        root = self.file("checkpoints")
        aside = root / f".{step}.old.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(root / str(step), aside)
        shutil.rmtree(aside, ignore_errors=True)

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


def write_folder(final: Path, make: Callable[[Path], Any]) -> None:
    """`make(temporary folder)` fills a new folder, whose files are synced and which is then renamed to `final`.

    Raises BadFolder if something is there already or nothing can be written there, DiskFull; nothing is then left.
    """
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise BadFolder(f"{final} exists already and is never written over. Choose another --out, or remove it.")
    aside = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        aside.chmod(0o755)
        make(aside)
        for path in aside.iterdir():
            path.chmod(0o644)
            _sync(path)
        _sync(aside)
        os.rename(aside, final)
        _sync(final.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"no space left while writing {final}. Free some space and write it again.") from None
        raise BadFolder(f"cannot write to {final}: {error.strerror}.") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
