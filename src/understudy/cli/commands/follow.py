"""`understudy follow RUN`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.follow import FollowConfig as Config
from understudy.workflows.follow import follow


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = follow(config, progress)
    return made.model_dump(mode="json"), str(made)
