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
    table = _empty("shape", "search")
    for name in ("step, s", "floor, s", "in floors", "MiB", "fvu", "fastest peer"):
        table.add_column(name, justify="right")
    for r in rows:
        peak = "-" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        peer = "-" if r["ratio_fastest_peer"] is None else f"{r['ratio_fastest_peer']:.1f} x"
        seconds = [f"{r['ours_s']:.3f}", f"{r['floor_s']:.3f}"]
        table.add_row(_shape(r), r["dtype"], *seconds, _floors(r), peak, f"{r['fvu']:.4f}", peer)
    return table


def _empty(*names: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _floors(timed: dict[str, Any]) -> str:
    low, high = timed["ratio_floor_interval"]
    return f"{timed['ratio_floor']:.2f} [{low:.2f}, {high:.2f}]"


def _parts(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(part for r in rows for part in r["parts"] if part != "rest"))
    table = _empty("in floors", "search")
    for name in (*names, "rest"):
        table.add_column(name, justify="right")
    for r in rows:
        shown = [f"{r['parts'][n]:.3f}" if n in r["parts"] else "-" for n in (*names, "rest")]
        table.add_row(_shape(r), r["dtype"], *shown)
    return table


def _peers(rows: list[dict[str, Any]]) -> list[Any]:
    table = _empty("peer at", "library")
    searches = list(dict.fromkeys(r["dtype"] for r in rows))
    for name in ("step, s", "in floors", "MiB", *(f"over {search}" for search in searches)):
        table.add_column(name, justify="right")
    by_shape: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        by_shape.setdefault(_shape(r), []).append(r)
    for shape, of_shape in by_shape.items():
        for library, p in (of_shape[0].get("peers") or {}).items():
            if "not_measured" in p:
                table.add_row(shape, library, p["not_measured"])
                continue
            peak = "-" if p["peak_mib"] is None else f"{p['peak_mib']:.0f}"
            over = [f"{r['ratio_peers'][library]:.1f} x" for r in of_shape]
            table.add_row(shape, library, f"{p['seconds']:.3f}", _floors(p), peak, *over)
    return ["", table] if table.row_count else []
