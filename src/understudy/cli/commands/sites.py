"""`understudy sites NETWORK`."""

from typing import Any

from rich.table import Table

from understudy.core.records.progress import Progress
from understudy.workflows.sites import SitesConfig as Config
from understudy.workflows.sites import list_sites


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    rows = list_sites(config)
    table = Table("site", "module path", "axes", "width", "part", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(row.name, row.path, " x ".join(row.axes), str(row.width), row.part)
    return {"network": config.network, "sites": [row.model_dump() for row in rows]}, table
