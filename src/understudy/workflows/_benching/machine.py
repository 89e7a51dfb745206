"""What a benchmark ran on, for the record."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from understudy.core.records.errors import BadInput
from understudy.workflows._benching.quiet import Watch


def machine(watch: Watch) -> dict[str, Any]:
    """Date, processor, threads, torch, load average, and what the watch saw."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": cpu, "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "load_average": list(os.getloadavg()),
        **watch.seen.model_dump(),
    }  # fmt: skip


def check_out(out: Path | None) -> None:
    """Before anything is timed. Raises BadInput for a file that cannot be written."""
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.open("a").close()
    except OSError as error:
        raise BadInput(f"--out {out} cannot be written: {error.strerror}. Name another file.") from None


def check_folder(folder: Path) -> None:
    """Raises BadInput for one that nothing can be written to."""
    try:
        TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise BadInput(f"--folder {folder} cannot be written to: {error.strerror}. Name another.") from None


def keep(found: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The same, written to a file too where one is named."""
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
