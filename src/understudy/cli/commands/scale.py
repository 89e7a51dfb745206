"""`understudy scale`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.scale import render
from understudy.workflows.scale import ScaleConfig as Config
from understudy.workflows.scale import scale


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = scale(config, progress)
    if isinstance(made, str):
        return {"plan": made}, made
    page = config.out / "scale.html"
    page.write_text(render(made), encoding="utf-8")
    return {"page": str(page), **made.model_dump(mode="json")}, f"{made}\n\nopen {page}"
