"""`understudy organisms`."""

from typing import Any

from rich.table import Table

from understudy.core.records.metric import Measured
from understudy.core.records.progress import Progress
from understudy.workflows.organisms import OrganismsConfig as Config
from understudy.workflows.organisms import list_organisms


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    rows = list_organisms(config, progress)
    last = "checks" if config.check else "weights"
    table = Table("name", "what is planted", "what is known", last, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        shown = _shown(row) if config.check else "trained, then cached" if row["trained"] else "set by hand"
        table.add_row(row["name"], row["planted"], row["truth"], shown)
    return {"organisms": rows}, table


def _shown(row: dict[str, Any]) -> str:
    checks = [*row["checks"], *({**c, "name": f"twin: {c['name']}"} for c in row["twin_checks"])]
    failed = [f"FAILED {c['name']}: {Measured(**c['figure'])}, not {c['mark']}" for c in checks if not c["passed"]]
    return "\n".join(failed) or f"{len(checks)} passed"
