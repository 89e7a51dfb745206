"""`understudy bench harvest`."""

from typing import Any

from understudy.core.records.progress import Progress
from understudy.workflows.bench_harvest import BenchHarvestConfig as Config
from understudy.workflows.bench_harvest import bench_harvest


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    data = bench_harvest(config, progress)
    lines = [f"NOT CONCLUSIVE, the machine was not quiet: {c}" for c in data["complaints"]]
    lines += [
        f"{data['network']}, {len(data['sites'])} sites, {data['places_a_chunk']:,} places a chunk",
        f"bare forward pass  {data['bare_rate']:12,.0f} places/s, up to the last site that is read",
        f"harvesting         {data['harvest_rate']:12,.0f} places/s, {data['ratio']:.3f} of it",
        f"shuffling          {data['shuffle_of_harvest']:.1%} of harvesting and shuffling, "
        f"{data['shuffle_of_run']:.1%} of a training run",
    ]
    return data, "\n".join(lines)
