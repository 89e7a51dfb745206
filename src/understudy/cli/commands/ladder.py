"""`understudy ladder`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.ladder import render
from understudy.workflows.ladder import LadderConfig as Config
from understudy.workflows.ladder import ladder


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    card = ladder(config, progress)
    if config.page is None:
        return card.model_dump(mode="json"), str(card)
    config.page.write_text(render(card))
    return card.model_dump(mode="json") | {"page": str(config.page)}, f"{card}\n\nopen {config.page}"
