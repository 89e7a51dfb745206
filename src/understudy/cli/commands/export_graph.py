"""`understudy export-graph X.acg`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.export_graph import ExportGraphConfig as Config
from understudy.workflows.export_graph import export_graph


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = export_graph(config, progress)
    return found.model_dump(mode="json"), str(found)
