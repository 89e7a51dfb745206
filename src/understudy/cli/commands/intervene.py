"""`understudy intervene RUN|X.acg --set "mlp.3/174=0"`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.intervene import InterveneConfig as Config
from understudy.workflows.intervene import described, intervene


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = intervene(config, progress)
    return found.model_dump(mode="json"), described(found)
