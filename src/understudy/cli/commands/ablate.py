"""`understudy ablate`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.frontier import render
from understudy.workflows.ablate import AblateConfig as Config
from understudy.workflows.ablate import ablate


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = ablate(config, progress)
    if isinstance(made, str):
        return {"plan": made}, made
    page = config.out / "frontier.html"
    page.write_text(render(made), encoding="utf-8")
    return {"page": str(page), **made.model_dump(mode="json")}, f"{made}\n\nopen {page}"
