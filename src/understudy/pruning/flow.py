"""Influence: how much of the targets flows through each node and edge. One sweep from the targets backwards.

Every row is read as shares: |weight| / (sum of |weights| + remainder_abs). A target starts with its weight, and each
node passes what it has to its sources by those shares. Because nodes lie in the order of computation, each has all it
will get before it is reached: the sweep is exact and reads every edge once. What flows into remainders is not passed
on. Without remainders this is the influence of attribution graphs, w (M + M^2 + ...) (Anthropic 2025, Circuit Tracing).
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.graph import Graph, Rows
from understudy.core.records.errors import BadData

BLOCK = 1 << 20
"""Edges that are worked on at a time, at most (a longer row alone is more)."""


def influence(graph: Graph) -> Float[Tensor, " n"]:
    """What flows through each node, as a share of the targets; fp64. A target's own weight is not counted as its
    influence.

    Raises BadData where an edge runs backwards.
    """
    return flow(graph.rows, starts(graph), graph.rows.mass)


def edge_influence(graph: Graph) -> Float[Tensor, " e"]:
    """What flows through each edge, as a share of the targets; fp64."""
    weights = starts(graph)
    reached = flow(graph.rows, weights, graph.rows.mass) + weights
    return edge_flow(graph.rows, reached, graph.rows.mass)


def starts(graph: Graph) -> Float[Tensor, " n"]:
    """Where influence starts: the weights of the targets, 0 elsewhere; fp64."""
    out = torch.zeros(len(graph), dtype=torch.float64)
    targets = graph.nodes.where("target")
    weights = torch.tensor([t.weight for t in graph.card.targets], dtype=torch.float64)
    out[targets] = weights[graph.nodes.latent[targets].long()]
    return out


def flow(rows: Rows, start: Float[Tensor, " n"], mass: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Influence for given starts and denominators of the shares; fp64. Rows without mass pass nothing on."""
    out = torch.zeros_like(start)
    for first, end in blocks(rows):
        part = slice(int(rows.offsets[first]), int(rows.offsets[end]))
        per_unit = _per_unit(out[first:end] + start[first:end], mass[first:end])
        passed = per_unit.repeat_interleave(rows.offsets[first : end + 1].diff())
        out.index_add_(0, rows.sources[part], passed.mul_(rows.weights[part].abs()))
    return out


def edge_flow(rows: Rows, reached: Float[Tensor, " n"], mass: Float[Tensor, " n"]) -> Float[Tensor, " e"]:
    """What flows through each edge, where `reached` (influence and start) arrives at each node; fp64."""
    return _per_unit(reached, mass).repeat_interleave(rows.offsets.diff()).mul_(rows.weights.abs())


def cumulative_share(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """For each node the share of all scores that it and those above it hold: small is important, the last is 1.

    Equal scores are ranked by index. Zeros where all scores are zero.
    """
    order = scores.argsort(descending=True, stable=True)
    total = scores.sum()
    shares = scores[order].cumsum(0) / total if total > 0 else torch.zeros_like(scores)
    return torch.empty_like(scores).scatter_(0, order, shares)


def smallest_kept(scores: Float[Tensor, " n"], share: float) -> float:
    """The score at which the largest scores first hold `share` of all. Never below the smallest above zero.

    Ties are kept together by comparing with >=.
    """
    ordered = scores.sort(descending=True).values
    held = ordered.cumsum(0)
    at = int(torch.searchsorted(held / held[-1], share))
    return float(ordered[min(at, max(int((ordered > 0).sum()) - 1, 0))])


def blocks(rows: Rows) -> Iterator[tuple[int, int]]:
    """Ranges of nodes, last first, with no edge inside a range: what a range passes on is known when it is reached.

    Raises BadData where an edge runs backwards or from a node that is not there.
    """
    latest = _latest_source(rows)
    offsets = rows.offsets.tolist()
    end, newest = len(latest), -1
    for t in range(len(latest) - 1, -1, -1):
        source = latest[t]
        if source >= t:
            raise BadData(f"node {t} has an edge from node {source}: nodes must lie in the order of computation.")
        if t + 1 < end and (max(newest, source) >= t or offsets[end] - offsets[t] > BLOCK):
            yield t + 1, end
            end, newest = t + 1, -1
        newest = max(newest, source)
    if end:
        yield 0, end


def _latest_source(rows: Rows) -> list[int]:
    """The largest source of every row, -1 for empty ones."""
    starts_at, counts = rows.offsets[:-1].numpy(), rows.offsets.diff().numpy()
    out = np.full(len(counts), -1, dtype=np.int64)
    if counts.any():
        out[counts > 0] = np.maximum.reduceat(rows.sources.numpy(), starts_at[counts > 0])
    return out.tolist()


def _per_unit(reached: Tensor, mass: Tensor) -> Tensor:
    return torch.where(mass > 0, reached / mass.clamp(min=torch.finfo(mass.dtype).tiny), 0.0)
