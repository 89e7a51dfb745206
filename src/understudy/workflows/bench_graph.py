"""`bench graph`: our graph of one input against circuit-tracer's - the same weights, transcoders, tokens and nodes."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

import understudy.workflows._benching.graph_ours as ours
from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput, UnderstudyError
from understudy.core.records.graph import KINDS
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.summary import figure, table
from understudy.core.weights import load_tensors
from understudy.data.packing import separator_of
from understudy.workflows._benching.quiet import Quiet, Watch
from understudy.workflows._data import open_sequences
from understudy.workflows.evaluate import open_run
from understudy.workflows.export import ExportConfig, export

PEER = Path(__file__).parents[3] / "benchmarks" / "graph_peer.py"


class BenchGraphConfig(Config):
    """What to make a graph of, and how often."""

    run: str
    """Folder of a finished run with a transcoder for every MLP of a Llama network."""
    peer: Path | None = None
    """A Python with circuit-tracer; by default what UNDERSTUDY_PEERS names."""
    places: PositiveInt = 64
    """Tokens of the prompt: the opening token, then held-out text."""
    nodes: PositiveInt | None = None
    """Latents with a row of their own, in both; by default all that are on."""
    peer_batch: str = "512,128"
    """circuit-tracer's batch sizes to try, each a line of its own: 512 is its default."""
    rounds: PositiveInt = 3
    """Times each is made, one after the other in turn."""
    threads: PositiveInt = 1
    network: str | None = None
    """The run's network, where its config names code (py:...)."""


class Row(Record):
    """One comparison."""

    shape: dict[str, int]
    """places, layers, width, latents of a dictionary, rows, peer_batch, threads."""
    ours_s: float
    """From the opened network to the graph with its certificate; median of the rounds."""
    ours_rows_s: float
    """Of these, until the last row was there."""
    peer_s: float
    ratio: Metric
    """peer_s / ours_s: median of the rounds; its ends are the smallest and largest of them."""
    ours_cpu_s: float
    """Time on a processor, which other work on the machine stretches less; medians."""
    peer_cpu_s: float
    ours_peak_mib: float
    """Largest memory of the process, libraries, network and dictionaries included."""
    peer_peak_mib: float
    ours_added_mib: float
    """Of these, what making the graph added to the opened network."""
    peer_added_mib: float
    nodes: int
    edges: int
    peer_edges: int
    same_latents: float
    """Latents with a row in both / in either."""
    edges_differ: float
    """Length of the difference of the edges that both have, over their length; 0 is the same job done."""
    row_sum_error: float
    """Largest |sum of one of our rows - its value|, relative to the largest value."""


class BenchGraph(Record):
    """All rows, and what may be concluded from them."""

    quiet: Quiet
    conclusion: str
    is_conclusive: bool
    """The machine was quiet and both did the same job."""
    rows: list[Row]


def bench_graph(config: BenchGraphConfig, progress: Progress = SILENT) -> BenchGraph:
    """Both sides in processes of their own, in turn. Raises BadInput for a run or a Python that does not fit."""
    peer = config.peer or (Path(os.environ["UNDERSTUDY_PEERS"]) if os.environ.get("UNDERSTUDY_PEERS") else None)
    if peer is None or not peer.is_file():
        raise BadInput(
            f"{peer or 'no Python'} was given for circuit-tracer: make an environment with it (pip install "
            "circuit-tracer==0.5.0 transformer-lens) and name its Python: --peer /path/to/bin/python."
        )
    if not PEER.is_file():
        raise BadInput(f"{PEER} is not there: this benchmark runs from a checkout of the sources.")
    batches = _batches(config.peer_batch)
    run = open_run(config.run, config.network)
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        here = Path(folder)
        files = ExportConfig(run=Path(config.run), format="circuit-tracer", out=here / "transcoders")
        export(files, network=run.network)
        ids = _prompt(config, run.network, run.config.data)
        module: Any = run.network.module
        module.save_pretrained(here / "network")
        run.network.tokenizer.save_pretrained(here / "network")
        asked = {"ids": ids, "nodes": config.nodes, "threads": config.threads, "run": config.run}
        asked |= {"network": config.network, "out": str(here / "ours.safetensors")}
        theirs = asked | {"network": str(here / "network"), "transcoders": str(here / "transcoders")}
        found: dict[int, list[dict[str, Any]]] = {b: [] for b in batches}
        mine: list[dict[str, Any]] = []
        with progress.task("graphs", config.rounds * (1 + len(batches)), "graphs") as task:
            for _ in range(config.rounds):
                watch.look()
                mine.append(_process([sys.executable, "-m", ours.__name__], asked))
                task.update(len(mine) + sum(map(len, found.values())), "ours")
                for b in batches:
                    out = str(here / f"peer-{b}.safetensors")
                    found[b].append(_process([str(peer), "-W", "ignore", str(PEER)], theirs | {"batch": b, "out": out}))
                    task.update(len(mine) + sum(map(len, found.values())), f"circuit-tracer, batch {b}")
            watch.look()
        quiet = watch.seen
        edges = load_tensors(here / "ours.safetensors")
        rows = []
        for b in batches:
            same = agreement(edges, load_tensors(here / f"peer-{b}.safetensors"), len(ids))
            rows.append(_row(config, run.network, mine, found[b], b, same, quiet))
    fits, conclusion = _conclusion(rows, quiet)
    return BenchGraph(quiet=quiet, conclusion=conclusion, is_conclusive=fits, rows=rows)


def _batches(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise BadInput(f"--peer-batch {text}: sizes are whole numbers with commas between them, like 512,128.")
    return found


def _prompt(config: BenchGraphConfig, network: Network, data: str) -> list[int]:
    """The opening token, then held-out text: circuit-tracer wants a special token in front."""
    opening = separator_of(network.tokenizer)
    if opening is None or config.places > network.max_context:
        raise BadInput(
            f"--places {config.places}: {network.name} takes up to {network.max_context}, and needs an opening token."
        )
    held_out = open_sequences(network, data, "held_out", None, 20_000)
    ids = held_out.batch(slice(0, 1)).inputs["input_ids"][0].tolist()
    ids = [opening, *(i for i in ids if i != opening)][: config.places]
    if len(ids) < config.places:
        raise BadData(f"{data} gives a first sequence of {len(ids)} tokens; --places {config.places} were asked for.")
    return ids


def _process(command: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    """What a process answers. Raises UnderstudyError with the last it said where it failed."""
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UnderstudyError(f"{' '.join(command)} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _row(
    config: BenchGraphConfig,
    network: Network,
    mine: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    batch: int,
    same: tuple[float, float],
    quiet: Quiet,
) -> Row:
    def mid(found: list[dict[str, Any]], key: str) -> float:
        return float(median(f[key] for f in found))

    ratios = [t["seconds"] / m["seconds"] for m, t in zip(mine, theirs, strict=True)]
    ratio: Metric = Measured(value=median(ratios), low=min(ratios), high=max(ratios), unit="x", n=len(ratios))
    c: Any = network.module.config
    shape = {
        "places": config.places, "layers": c.num_hidden_layers, "width": c.hidden_size, "rows": mine[-1]["rows"],
        "peer_rows": theirs[-1]["rows"], "peer_batch": batch, "threads": config.threads,
    }  # fmt: skip
    return Row(
        shape=shape, ours_s=mid(mine, "seconds"), ours_rows_s=mid(mine, "rows_s"), peer_s=mid(theirs, "seconds"),
        ratio=NotMeasured(not_measured=quiet.complaint) if quiet.complaint else ratio,
        ours_cpu_s=mid(mine, "cpu_s"), peer_cpu_s=mid(theirs, "cpu_s"),
        ours_peak_mib=mid(mine, "peak_mib"), peer_peak_mib=mid(theirs, "peak_mib"),
        ours_added_mib=max(m["peak_mib"] - m["loaded_mib"] for m in mine),
        peer_added_mib=max(t["peak_mib"] - t["loaded_mib"] for t in theirs),
        nodes=mine[-1]["nodes"], edges=mine[-1]["edges"], peer_edges=theirs[-1]["edges"], same_latents=same[0],
        edges_differ=same[1], row_sum_error=mine[-1]["row_sum_error"],
    )  # fmt: skip


def agreement(mine: dict[str, Tensor], theirs: dict[str, Tensor], n_places: int) -> tuple[float, float]:
    """Share of latents with a row that both have; relative difference of the edges between what both have.

    Compared are edges from latents, errors (from place 1 on: place 0's are not sources there) and tokens into latents
    and outputs.
    """
    features, outputs = theirs["features"], theirs["outputs"].tolist()
    n, edges = len(features), theirs["edges"]
    layers = (len(edges) - len(outputs) - n) // n_places - 1
    number = {(layer, place, i): j for j, (layer, place, i) in enumerate(features.tolist())}
    number |= {("error", layer, p): n + layer * n_places + p for layer in range(layers) for p in range(1, n_places)}
    number |= {("input", p): n + layers * n_places + p for p in range(n_places)}
    number |= {("target", o): len(edges) - len(outputs) + i for i, o in enumerate(outputs)}
    keys = _keys(mine)
    own = torch.tensor([number.get(k, -1) for k in keys])
    latent, kept = mine["kind"] == KINDS.index("latent"), own >= 0
    either = n + int((latent & ~kept).sum())
    dense = torch.zeros_like(edges)
    s, t = own[mine["sources"]], own[mine["targets"]]
    both = (s >= 0) & (t >= 0)
    dense[t[both], s[both]] = mine["weights"][both]
    there = torch.zeros(len(edges), dtype=torch.bool)
    there[own[kept]] = True
    wanted = edges * there[:, None] * there[None, :]
    return int((latent & kept).sum()) / max(1, either), float((dense - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _keys(mine: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    """A name for each of our nodes that circuit-tracer's nodes have too."""
    out: list[tuple[Any, ...]] = []
    columns = (mine[name].tolist() for name in ("kind", "dictionary", "latent", "place"))
    errors = 0
    for kind, dictionary, latent, place in zip(*columns, strict=True):
        match KINDS[kind]:
            case "latent":
                out.append((dictionary, place, latent))
            case "error":
                layer, errors = errors // (int(mine["place"].max()) + 1), errors + 1
                out.append(("error", layer, place))
            case "input":
                out.append(("input", place))
            case "target":
                out.append(("target", int(mine["outputs"][latent])))
            case _:
                out.append(("bias",))
    return out


def _conclusion(rows: list[Row], quiet: Quiet) -> tuple[bool, str]:
    if quiet.complaint:
        return False, f"nothing can be concluded: {quiet.complaint}"
    wrong = [r for r in rows if r.same_latents < 1 or r.edges_differ > 1e-3]
    if wrong:
        return False, f"nothing can be concluded: the graphs differ (edges by {max(r.edges_differ for r in wrong):.1e})"
    said = [f"{figure(r.ratio, 2)} times as long at its batch {r.shape['peer_batch']}" for r in rows]
    return True, "circuit-tracer takes " + ", ".join(said)


def described(found: BenchGraph) -> str:
    """The table."""
    header = ["peer batch", "ours s", "rows only", "peer s", "ratio", "cpu s"]
    header += ["ours MiB (added)", "peer MiB (added)", "edges differ"]
    lines = [
        [
            str(r.shape["peer_batch"]), f"{r.ours_s:.2f}", f"{r.ours_rows_s:.2f}", f"{r.peer_s:.2f}",
            "-" if isinstance(r.ratio, NotMeasured) else figure(r.ratio, 2),
            f"{r.ours_cpu_s:.2f} / {r.peer_cpu_s:.2f}",
            f"{r.ours_peak_mib:.0f} ({r.ours_added_mib:.0f})", f"{r.peer_peak_mib:.0f} ({r.peer_added_mib:.0f})",
            f"{r.edges_differ:.1e}",
        ]
        for r in found.rows
    ]  # fmt: skip
    rates = ", ".join(f"{g:.0f}" for g in found.quiet.encoder_gflops)
    about = f"other work {found.quiet.busy_cores:.2f} cores, encoder {rates} GFLOP/s"
    return f"{table(header, lines)}\n\n{about}\n{found.conclusion}"
