"""`understudy train`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.train import TrainConfig as Config
from understudy.workflows.train import train


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    made = train(config, progress)
    thresholds = {site: vars(c) for site, c in made.conversion.items()}
    data = {"run": str(made.folder.path), "groups": len(made.groups), "thresholds": thresholds}
    lines = [
        f"{len(made.groups)} group{'s' if len(made.groups) != 1 else ''} trained; the run is in {made.folder.path}",
        "",
    ]
    lines += [f"  {site}: {c}" for site, c in made.conversion.items()]
    lines += ["", f"next: understudy evaluate {made.folder.path}"]
    return data, "\n".join(lines)
