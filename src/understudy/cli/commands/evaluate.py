"""`understudy evaluate RUN`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.evaluate import EvaluateConfig as Config
from understudy.workflows.evaluate import evaluate


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    card = evaluate(config, progress)
    return card.model_dump(mode="json"), str(card)
