"""`understudy run RUN|X.acg`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.curve import render
from understudy.workflows.run import RunConfig as Config
from understudy.workflows.run import curve_folder
from understudy.workflows.run import run as run_graphs


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    curve = run_graphs(config, progress)
    page = curve_folder(config).write_text("curve.html", render(curve))
    return {"page": str(page), **curve.model_dump(mode="json")}, f"{curve}\n\nopen {page}"
