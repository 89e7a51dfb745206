"""`organisms`, `organism`: networks whose mechanism is known. List them, check them, write one to a folder."""

from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from understudy.core.records.config import Config
from understudy.core.records.errors import UnknownName
from understudy.core.records.progress import SILENT, Progress
from understudy.organisms import ORGANISMS, save_organism
from understudy.workflows._opening import open_world


class OrganismsConfig(Config):
    """Which to list, and whether to check them."""

    names: str = ""
    """Some of them, separated by commas; empty: all."""
    check: bool = False
    """Build each and run its checks and its twin's. Those that are trained take up to two minutes once."""
    seed: NonNegativeInt = 0
    """Decides weights and data."""


class OrganismConfig(Config):
    """Which to write, and where."""

    name: str = "sort"
    """See `understudy organisms`."""
    out: Path | None = None
    """A new folder; by default organisms/NAME."""
    seed: NonNegativeInt = 0
    """Decides weights and data."""


def list_organisms(config: OrganismsConfig, progress: Progress = SILENT) -> list[dict[str, Any]]:
    """Rows with `name`, `planted`, `truth`, `trained`, and with `check` also `checks` and `twin_checks`."""
    names = [n.strip() for n in config.names.split(",") if n.strip()] or list(ORGANISMS)
    for name in names:
        if name not in ORGANISMS:
            raise UnknownName.among("organism", name, ORGANISMS)
    rows = [{k: v for k, v in vars(ORGANISMS[n]).items() if k != "home"} for n in names]
    if not config.check:
        return rows
    with progress.task("checking organisms", len(rows), "organisms") as task:
        for i, row in enumerate(rows):
            world = open_world(row["name"], config.seed, progress)
            row["checks"] = _checks(world)
            row["twin_checks"] = [] if world.negative is None else _checks(world.negative)
            task.update(i + 1, row["name"])
    return rows


def write_organism(config: OrganismConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Build, check and write one. Returns `name`, `out`, `checks`, `healthy`."""
    out = config.out or Path("organisms") / config.name
    world = open_world(config.name, config.seed, progress)
    results = world.health()
    save_organism(world, config.seed, out, results)
    rows = _checks(world, results)
    return {"name": world.name, "out": str(out), "planted": world.planted, "checks": rows,
            "healthy": all(r["passed"] for r in rows)}  # fmt: skip


def _checks(world: Any, results: Any = None) -> list[dict[str, Any]]:
    return [r._asdict() | {"figure": r.figure.model_dump()} for r in results or world.health()]
