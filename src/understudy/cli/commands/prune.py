"""`understudy prune X.acg --nodes 100 --out Y.acg`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.prune import PruneConfig as Config
from understudy.workflows.prune import prune


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = prune(config, progress)
    return found.model_dump(mode="json"), str(found)
