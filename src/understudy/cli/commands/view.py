"""`understudy view X.acg`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.web.graph import render
from understudy.workflows._graphs import write_file
from understudy.workflows.view import ViewConfig as Config
from understudy.workflows.view import view


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    found = view(config, progress)
    path = write_file(config.out or config.graph.with_suffix(".html"), render(found))
    data = {"page": str(path), "bytes": path.stat().st_size, "nodes": len(found.nodes), "edges": len(found.edges)}
    return data, f"open {path}  ({data['bytes'] / 1e6:.1f} MB: {data['nodes']} nodes, {data['edges']} edges)"
