"""`understudy collect`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.collect import CollectConfig as Config
from understudy.workflows.collect import collect


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    data = collect(config, progress)
    lines = [
        f"{data['places']:,} places at {len(data['sites'])} sites in {data['shards']} shards of {data['folder']}, "
        f"{data['bytes'] / 1e6:,.0f} MB in {data['dtype']}",
        f"mixing: two rows of a batch are of one sequence in {data['mixing']['value']:.2%} of pairs; "
        f"{data['mixing_of_all']['value']:.2%} if all were shuffled together",
        "",
        f"next: understudy train --activations {data['folder']}",
    ]
    return data, "\n".join(lines)
