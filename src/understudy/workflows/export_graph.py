"""`export-graph`: a graph as the JSON that the viewers of others open."""

import json
from pathlib import Path

import torch
from pydantic import PositiveInt

from understudy.core.records.config import Config
from understudy.core.records.errors import BadFolder
from understudy.core.records.metric import Record
from understudy.core.records.progress import SILENT, Progress
from understudy.formats.graph_json import to_json
from understudy.pruning import cumulative_share, influence, prune_by_thresholds, score_graph
from understudy.pruning import prune as prune_by_influence
from understudy.workflows._graphs import open_graph, write_file


class ExportGraphConfig(Config):
    """What to write where. One file opens in circuit-tracer's viewer and in Neuronpedia's."""

    graph: Path
    """An .acg folder."""
    out: Path | None = None
    """JSON file; GRAPH.json beside the graph unless named."""
    nodes: PositiveInt | None = None
    """Export this many latents, errors and biases, the most influential."""
    whole: bool = False
    """Export everything. Without --nodes and this, what the published thresholds 0.8 and 0.98 keep."""
    scan: str | None = None
    """What Neuronpedia calls the model (gemma-2-2b), or where circuit-tracer finds feature files (./folder)."""
    slug: str | None = None
    """Name in the viewer; that of the graph unless given."""


class ExportedGraph(Record):
    """Where the file is and what it holds."""

    out: str
    bytes: int
    nodes: int
    links: int

    def __str__(self) -> str:
        return f"{self.out}: {self.nodes:,} nodes, {self.links:,} links, {self.bytes / 1e6:.1f} MB"


@torch.no_grad()
def export_graph(config: ExportGraphConfig, progress: Progress = SILENT) -> ExportedGraph:
    """Write the file. Scores in it are those of the whole graph, influence that of what is exported.

    Raises BadInput and its kin.
    """
    out = config.out or config.graph.with_suffix(".json")
    if out.exists():
        raise BadFolder(f"{out} exists already and is never written over. Choose another --out, or remove it.")
    graph = open_graph(config.graph)
    if config.nodes is not None:
        part = prune_by_influence(graph, nodes=config.nodes)
    else:
        part = graph if config.whole else prune_by_thresholds(graph)
    scores = {name: value.model_dump() for name, value in score_graph(graph) if name not in ("kinds", "nodes", "edges")}
    # Biases are no nodes there, so they hold no share of what the slider counts.
    shares = cumulative_share(torch.where(part.nodes.where("bias"), 0.0, influence(part)))
    data = to_json(part, shares, config.slug or config.graph.stem, config.scan, {"scores": scores})
    write_file(out, json.dumps(data, allow_nan=False))
    return ExportedGraph(out=str(out), bytes=out.stat().st_size, nodes=len(data["nodes"]), links=len(data["links"]))
