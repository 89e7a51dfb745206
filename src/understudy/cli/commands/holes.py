"""`understudy holes RUN`."""

from typing import Any

from understudy.core.records.artifact import RunFolder
from understudy.core.records.progress import Progress
from understudy.web.holes import render
from understudy.workflows.evaluate import address, named
from understudy.workflows.holes import HolesConfig as Config
from understudy.workflows.holes import holes


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = holes(config, progress)
    folder, part = address(config.run)
    path = RunFolder(folder).write_text(named("holes.html", part, config.data), render(found))
    return found.model_dump(mode="json") | {"page": str(path)}, f"{found}\n\nopen {path}"
