"""`understudy demo`: train, judge, report - the three commands in one."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.page import render
from understudy.workflows.demo import DemoConfig as Config
from understudy.workflows.demo import demo


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = demo(config, progress)
    path = made.trained.folder.write_text("report.html", render(made.report))
    card = made.report.scorecard
    data = {
        "run": str(config.out),
        "report": str(path),
        "seconds": made.seconds,
        "scorecard": card.model_dump(mode="json"),
    }
    seconds = ", ".join(f"{what} {s:.0f} s" for what, s in made.seconds.items())
    return data, f"{card}\n\n{seconds}\nopen {path}"
