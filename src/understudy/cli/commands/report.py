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
    claimed = sum(bool(f.claims) for listed in found.features.values() for f in listed)
    size = path.stat().st_size
    text = f"{path} ({size / 1e6:.1f} MB, {features} features" + (
        f", {claimed} explained by others)" if claimed else ")"
    )
    return {"report": str(path), "bytes": size, "features": features, "claimed": claimed}, text
