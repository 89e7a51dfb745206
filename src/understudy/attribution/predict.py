"""Predict: what a graph says will happen to its targets when latents are changed."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.graph import Graph


@dataclass(frozen=True)
class Predicted:
    """Change of each target's value, in the order of the graph's targets."""

    direct: Float[Tensor, " t"]
    """Along the edges from what is changed into the target."""
    total: Float[Tensor, " t"]
    """Along all paths: every latent on the way changes what it writes in proportion. None is taken to fall below its
    threshold or to rise above it, and what stands in remainders stays as it was."""


def predict(graph: Graph, change: Mapping[int, float]) -> Predicted:
    """change: by latent node, (new - old value) / old value; -1 removes it. Nodes that are changed stay where they are
    put, whatever reaches them."""
    nodes, rows = graph.nodes, graph.rows
    shares = torch.zeros(len(graph), dtype=torch.float64)
    for node, share in change.items():
        shares[node] = share
    targets = nodes.where("target").nonzero().squeeze(-1)
    direct = torch.stack([_row(graph, t, shares) for t in targets.tolist()])
    on = nodes.where("latent") & (nodes.value > nodes.threshold)
    offsets = rows.offsets.tolist()
    first = min(change, default=0)
    for node in on.nonzero().squeeze(-1).tolist():
        if node > first and node not in change and offsets[node] < offsets[node + 1]:
            shares[node] = _row(graph, node, shares) / float(nodes.value[node])
    return Predicted(direct, torch.stack([_row(graph, t, shares) for t in targets.tolist()]))


def _row(graph: Graph, node: int, shares: Tensor) -> Tensor:
    sources, weights = graph.rows.row(node)
    return weights.double() @ shares[sources.long()]
