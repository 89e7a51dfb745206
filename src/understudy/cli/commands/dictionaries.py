"""`understudy dictionaries [NETWORK]`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.dictionaries import DictionariesConfig as Config
from understudy.workflows.dictionaries import list_dictionaries


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    rows = list_dictionaries(config)
    widths = [max(len(row[i]) for row in rows) for i in (0, 2, 3)]
    lines = [
        "  ".join([row.network.ljust(widths[0]), row.kind.ljust(widths[1]), row.format.ljust(widths[2]), row.source])
        + (f"  ({row.note})" if row.note else "")
        for row in rows
    ]
    return {"dictionaries": [row._asdict() for row in rows]}, "\n".join(lines)
