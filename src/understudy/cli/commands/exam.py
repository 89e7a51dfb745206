"""`understudy exam`."""

from typing import Any

from rich.console import Group
from rich.table import Table

from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import Progress
from understudy.workflows.exam import ExamConfig as Config
from understudy.workflows.exam import exam


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    done = exam(config, progress)
    table = Table("organism", "method", "site", "alive", "truth recovered", "precision", box=None, header_style="bold",
                  pad_edge=False)  # fmt: skip
    for row in done.rows:
        alive = f"{row.alive} of {row.n_latents}"
        table.add_row(row.organism, row.method, row.site, alive, _short(row.truth_recovered), _short(row.precision))
    notes = [f"LOST since the last exam: {text}" for text in done.lost]
    return done.model_dump(mode="json"), Group(table, *notes, f"{len(done.rows)} rows in {done.wall_s:.0f} s")


def _short(figure: Metric) -> str:
    if isinstance(figure, NotMeasured):
        return str(figure)
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
