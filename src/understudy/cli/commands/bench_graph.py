"""`understudy bench graph RUN`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.bench_graph import BenchGraphConfig as Config
from understudy.workflows.bench_graph import bench_graph, described


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = bench_graph(config, progress)
    return {**found.model_dump(mode="json"), "exit_code": 0 if found.is_conclusive else 1}, described(found)
