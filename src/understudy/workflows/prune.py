"""`prune`: a smaller graph of what matters, and what that costs in its scores."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from understudy.core.graph import Graph
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.graph import KINDS, GraphScores
from understudy.core.records.metric import Record
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.summary import figure, table
from understudy.pruning import (
    activation,
    influence,
    largest,
    prune_by_thresholds,
    random_order,
    same_kinds,
    score_graph,
)
from understudy.pruning import prune as prune_by_influence
from understudy.workflows._graphs import open_graph

Share = Annotated[float, Field(gt=0, le=1)]


class PruneConfig(Config):
    """What to prune, and how far."""

    graph: Path
    """An .acg folder, or a JSON file of circuit-tracer or Neuronpedia."""
    out: Path | None = None
    """Folder of the smaller graph; without it only the scores are printed."""
    nodes: PositiveInt | None = None
    """Keep this many latents, errors and biases; inputs and targets stay."""
    share: Share | None = None
    """Keep the fewest of them that hold this share of influence."""
    by: Literal["influence", "activation", "random"] = "influence"
    """With --nodes. Rivals keep as many nodes of every kind and dictionary as influence does."""
    seed: int = 0
    """With --by random."""
    node_threshold: Share = 0.8
    """With neither --nodes nor --share: keep the nodes that hold this share of influence, inputs counted,"""
    edge_threshold: Share = 0.98
    """and of the edges between them those that hold this share. The published defaults."""


class Pruned(Record):
    """Scores of the whole and of what is left."""

    before: GraphScores
    after: GraphScores
    history: tuple[str, ...]
    out: str | None

    def __str__(self) -> str:
        before, after = self.before, self.after
        rows = [["nodes", f"{before.nodes:,}", f"{after.nodes:,}"]]
        rows += [[f"  {k}", f"{before.kinds[k]:,}", f"{after.kinds[k]:,}"] for k in KINDS]
        rows.append(["edges", f"{before.edges:,}", f"{after.edges:,}"])
        names = {
            "replacement": "replacement score", "completeness": "completeness score",
            "inputs": "influence that ends at inputs", "biases": "  at biases", "errors": "  at errors",
            "remainder": "  in what is not kept",
        }  # fmt: skip
        rows += [[name, figure(getattr(before, key)), figure(getattr(after, key))] for key, name in names.items()]
        where = f"graph written to {self.out}" if self.out else "nothing was written: name a folder with --out"
        return "\n\n".join([self.history[-1], table(["", "before", "after"], rows), where])


@torch.no_grad()
def prune(config: PruneConfig, progress: Progress = SILENT) -> Pruned:
    """Prune a graph and save it where `out` says. Raises BadInput and its kin."""
    if config.nodes is not None and config.share is not None:
        raise BadInput("--nodes and --share are two ways to say how far: give one.")
    if config.by != "influence" and config.nodes is None:
        raise BadInput(f"--by {config.by} makes a graph of a chosen size: give --nodes.")
    graph = open_graph(config.graph)
    kept = pruned(graph, config)
    if config.out is not None:
        kept.save(config.out)
    out = None if config.out is None else str(config.out)
    return Pruned(before=score_graph(graph), after=score_graph(kept), history=kept.history, out=out)


def pruned(graph: Graph, config: PruneConfig) -> Graph:
    """The smaller graph that the configuration asks for."""
    if config.share is not None:
        return prune_by_influence(graph, share=config.share)
    if config.nodes is None:
        return prune_by_thresholds(graph, config.node_threshold, config.edge_threshold)
    if config.by == "influence":
        return prune_by_influence(graph, nodes=config.nodes)
    scores = activation(graph) if config.by == "activation" else random_order(graph, config.seed)
    rival = same_kinds(graph, largest(graph, influence(graph), config.nodes), scores)
    return graph.keep(rival, why=f"{config.nodes} nodes by {config.by}, as many of each kind as by influence")
