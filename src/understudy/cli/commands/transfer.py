"""`understudy transfer`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.transfer import render
from understudy.workflows.transfer import TransferConfig as Config
from understudy.workflows.transfer import transfer


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = transfer(config, progress)
    page = config.out / "transfer.html"
    page.write_text(render(made), encoding="utf-8")
    verdicts = [{"network": r.network, "claim": r.claim, "verdict": r.verdict} for r in made.rows]
    return {"page": str(page), "verdicts": verdicts, **made.model_dump(mode="json")}, f"{made}\n\nopen {page}"
