"""`understudy bench step`."""

from typing import Any

from rich.console import Group
from rich.table import Table

from understudy.core.records.progress import Progress
from understudy.workflows.bench_step import BenchStepConfig as Config
from understudy.workflows.bench_step import bench_step


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    data = bench_step(config, progress)
    return data, Group(*_lines(data), _table(data["rows"]), "", _parts(data["rows"]), *_peers(data["rows"]))


def _lines(data: dict[str, Any]) -> list[str]:
    m = data["machine"]
    rates = ", ".join(f"{r:.0f}" for r in m["encoder_gflops"])
    load = ", ".join(f"{x:.1f}" for x in m["load_average"])
    first = f"{m['cpu']}, {m['threads']} threads of {m['cores']} cores, torch {m['torch']}, {m['date']}"
    quiet = f"encoder rate {rates} GFLOP/s on one thread; other work {m['busy_cores']:.2f} cores; load {load}"
    verdict = [f"NOT CONCLUSIVE, the machine was not quiet: {c}" for c in data["complaints"]]
    return [first, quiet, *verdict, ""]


def _shape(row: dict[str, Any]) -> str:
    return f"{row['shape']['d']}x{row['shape']['n']}"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("shape", "search", box=None, header_style="bold", pad_edge=False)
    for name in ("step, s", "floor, s", "in floors", "peak, MiB", "fvu", "fastest peer"):
        table.add_column(name, justify="right")
    for r in rows:
        peak = "-" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        peer = "-" if r["ratio_fastest_peer"] is None else f"{r['ratio_fastest_peer']:.1f} x"
        figures = [f"{r['ours_s']:.3f}", f"{r['floor_s']:.3f}", f"{r['ratio_floor']:.2f}", peak, f"{r['fvu']:.4f}"]
        table.add_row(_shape(r), r["dtype"], *figures, peer)
    return table


def _parts(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(part for r in rows for part in r["parts"] if part != "rest"))
    table = Table("in floors", "search", box=None, header_style="bold", pad_edge=False)
    for name in (*names, "rest"):
        table.add_column(name, justify="right")
    for r in rows:
        shown = [f"{r['parts'][n]:.3f}" if n in r["parts"] else "-" for n in (*names, "rest")]
        table.add_row(_shape(r), r["dtype"], *shown)
    return table


def _peers(rows: list[dict[str, Any]]) -> list[Any]:
    table = Table("peer at", "library", box=None, header_style="bold", pad_edge=False)
    for name in ("step, s", "in floors", "peak, MiB", "ours is faster by (fp32)"):
        table.add_column(name, justify="right")
    for r in (r for r in rows if r.get("peers") and r["dtype"] == "fp32"):
        for library, p in r["peers"].items():
            if "not_measured" in p:
                table.add_row(_shape(r), library, p["not_measured"], "", "", "")
            else:
                peak = "-" if p["peak_mib"] is None else f"{p['peak_mib']:.0f}"
                shown = (f"{p['seconds']:.3f}", f"{p['ratio_floor']:.2f}", peak, f"{r['ratio_peers'][library]:.1f} x")
                table.add_row(_shape(r), library, *shown)
    return ["", table] if table.row_count else []
