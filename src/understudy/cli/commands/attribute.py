"""`understudy attribute RUN --input "..."`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows._attributing.text import described
from understudy.workflows.attribute import AttributeConfig as Config
from understudy.workflows.attribute import attribute


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    graph = attribute(config, progress)
    data, text = described(graph)
    return {"graph": str(config.out), **data}, text
