"""`understudy bench quality`."""

from typing import Any

from rich.console import Group
from rich.table import Table

from understudy.core.records.progress import Progress
from understudy.workflows.bench_quality import BenchQualityConfig as Config
from understudy.workflows.bench_quality import bench_quality


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    data = bench_quality(config, progress)
    shape = "x".join(str(v) for v in data["shape"].values())
    first = f"{shape}, {data['places']:,} places, FVU of {data['held_out']:,} held-out rows with its 95% interval"
    return data, Group(first, "", _table(data["arms"]), "", *_verdict(data))


def _table(arms: dict[str, Any]) -> Table:
    table = Table("library", box=None, header_style="bold", pad_edge=False)
    for name in ("best lr", "x its own", "tried", "l0", "fvu"):
        table.add_column(name, justify="right")
    for arm, row in arms.items():
        if "not_measured" in row:
            table.add_row(arm, "-", "-", "-", "-", row["not_measured"])
            continue
        f = row["fvu"]
        shown = f"{f['value']:.4f} [{f['low']:.4f}, {f['high']:.4f}]" if "value" in f else f["not_measured"]
        edge = " (edge)" if row["is_at_edge"] else ""
        table.add_row(arm, f"{row['lr']:.2e}", f"{row['factor']:.3g}{edge}", str(len(row["grid"])),
                      f"{row['l0']:.1f}", shown)  # fmt: skip
    return table


def _verdict(data: dict[str, Any]) -> list[str]:
    if data["best_peer"] is None:
        return ["No other library was trained: add --peers."]
    d = data["difference"]
    by = f"{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" if "value" in d else d["not_measured"]
    return [f"ours minus {data['best_peer']}, paired: {by}: {data['verdict']}"]
