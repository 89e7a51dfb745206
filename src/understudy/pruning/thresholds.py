"""Pruning by two thresholds on influence, as attribution graphs are published: nodes first, then edges."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from understudy.core.graph import Graph
from understudy.core.records.errors import BadData
from understudy.pruning.flow import edge_flow, flow, influence, smallest_kept, starts
from understudy.pruning.size import always


def prune_by_thresholds(graph: Graph, nodes: float = 0.8, edges: float = 0.98) -> Graph:
    """Keep the nodes that hold `nodes` of influence, of their edges those that hold `edges`, and nothing that dangles.

    Inputs and targets stay. Among the nodes kept, edges are judged as if the others had never been there (shares are
    renormalised; a remainder the graph came with still counts), then latents, errors and biases that lead nowhere and
    latents that nothing leads to are dropped until none is left. Raises BadData for thresholds outside 0 to 1, and
    where nothing has influence.

    Source: circuit-tracer 0.4 `prune_graph`, on a graph without remainder the same nodes and edges. Differs in the
    result: what was dropped stays in the remainders, so every row still sums to its value and scores do not rise for
    having forgotten.
    """
    for what, share in (("nodes", nodes), ("edges", edges)):
        if not 0 <= share <= 1:
            raise BadData(f"the threshold for {what} lies between 0 and 1, not at {share}.")
    scores = influence(graph)
    if not bool((scores > 0).any()):
        raise BadData("no node influences the targets: the graph has no edges, so there is nothing to prune by.")
    kept = (scores >= smallest_kept(scores, nodes)) | always(graph)
    part = graph.keep(kept)
    mass = part.rows.edge_mass + graph.rows.remainder_abs[kept].double()
    weights = starts(part)
    through = edge_flow(part.rows, flow(part.rows, weights, mass) + weights, mass)
    if part.n_edges:
        through = through >= smallest_kept(through, edges)
    chosen = through.bool()
    why = f"pruned by thresholds {nodes:g} (nodes) and {edges:g} (edges)"
    return replace(part.keep(_connected(part, chosen), chosen), history=(*graph.history, why))


def _connected(graph: Graph, edges: Bool[Tensor, " e"]) -> Bool[Tensor, " n"]:
    """Nodes that are left when what dangles is dropped until nothing does."""
    sources, targets = graph.rows.sources[edges].long(), graph.rows.targets[edges]
    leads_nowhere_is_fine, comes_from_nowhere_is_fine = always(graph), ~graph.nodes.where("latent")
    alive = torch.ones(len(graph), dtype=torch.bool)
    while True:
        fine = alive & (_named(sources, alive) | leads_nowhere_is_fine)
        fine &= _named(targets, alive) | comes_from_nowhere_is_fine
        if bool((fine == alive).all()):
            return alive
        alive = fine
        between = alive[sources] & alive[targets]
        sources, targets = sources[between], targets[between]


def _named(ids: Integer[Tensor, " e"], like: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return torch.zeros_like(like).index_fill_(0, ids, True)
