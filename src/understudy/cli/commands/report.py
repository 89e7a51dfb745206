"""`understudy report RUN`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.page import render
from understudy.workflows.report import ReportConfig as Config
from understudy.workflows.report import report, write_page


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = report(config, progress)
    path = write_page(config, render(found))
    features = sum(map(len, found.features.values()))
    size = path.stat().st_size
    return {
        "report": str(path),
        "bytes": size,
        "features": features,
    }, f"{path} ({size / 1e6:.1f} MB, {features} features)"
