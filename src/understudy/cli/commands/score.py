"""`understudy score DICTIONARY --network NETWORK`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.score import ScoreConfig as Config
from understudy.workflows.score import run_score


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    card = run_score(config, progress)
    return card.model_dump(mode="json"), f"{card}\n\nnext: understudy report {config.out}"
