"""`understudy report RUN`."""

from typing import Any

from understudy.core.records.artifact import RunFolder
from understudy.core.records.progress import Progress
from understudy.web.page import render
from understudy.workflows.report import ReportConfig as Config
from understudy.workflows.report import report


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = report(config, progress)
    path = RunFolder(config.run).write_text("report.html", render(found))
    features = sum(map(len, found.features.values()))
    size = path.stat().st_size
    return {
        "report": str(path),
        "bytes": size,
        "features": features,
    }, f"{path} ({size / 1e6:.1f} MB, {features} features)"
