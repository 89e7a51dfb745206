"""`understudy organism NAME`."""

from typing import Any

from understudy.core.records.metric import Measured
from understudy.core.records.progress import Progress
from understudy.workflows.organisms import OrganismConfig as Config
from understudy.workflows.organisms import write_organism


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    data = write_organism(config, progress)
    lines = [f"{data['name']}: {data['planted']}", ""]
    for c in data["checks"]:
        lines.append(f"  {'ok    ' if c['passed'] else 'FAILED'} {c['name']}: {Measured(**c['figure'])} ({c['mark']})")
    lines += ["", f"weights, truth.json and card.json are in {data['out']}; from there:",
              f"  understudy train --network py:network:{data['name']} --kind sae --sites embed"]  # fmt: skip
    return data, "\n".join(lines)
