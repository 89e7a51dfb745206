"""`understudy export RUN --format FORMAT`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.export import ExportConfig as Config
from understudy.workflows.export import export


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    files = export(config, progress)
    size = sum(path.stat().st_size for path in files)
    data = {"out": str(config.out), "format": config.format, "files": [str(p) for p in files], "bytes": size}
    return data, f"{config.out}: {len(files)} files for {config.format}, {size / 1e6:.1f} MB"
