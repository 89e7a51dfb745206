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
        f"harvesting         {data['harvest_rate']:12,.0f} places/s, {_share(data, 'ratio')} of it",
        f"collecting         {data['collect_rate']:12,.0f} places/s, {_share(data, 'collect_ratio')} of it, "
        f"{data['collect_rate'] * data['bytes_a_place'] / 1e6:,.0f} MB/s to disk",
        f"shuffling          {data['shuffle_of_harvest']:.1%} of harvesting and shuffling, "
        f"{data['shuffle_of_run']:.1%} of a training run",
    ]
    return data, "\n".join(lines)


def _share(data: dict[str, Any], name: str) -> str:
    low, high = data[f"{name}_interval"]
    return f"{data[name]:.3f} [{low:.3f}, {high:.3f}]"
