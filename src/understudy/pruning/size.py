"""Graphs of a chosen size: the nodes that score highest, and rivals with as many nodes of each kind."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.graph import Graph
from understudy.core.records.errors import BadData
from understudy.core.records.graph import KINDS
from understudy.pruning.flow import influence, smallest_kept

ALWAYS = ("input", "target")
"""Kinds that stay whatever their score, and are not counted."""


def prune(graph: Graph, nodes: int | None = None, share: float | None = None) -> Graph:
    """The `nodes` nodes of largest influence, or the fewest that together hold `share` of it (ties stay together).

    Counted are latents, errors and biases, and their influence; inputs and targets stay. Edges of what goes are folded
    into remainders. Raises BadData unless exactly one of the two is given within its range, and where nothing has
    influence.
    """
    if (nodes is None) == (share is None):
        raise BadData("give either a number of nodes or a share of influence, not both or neither.")
    scores = influence(graph)
    if not bool((scores[~always(graph)] > 0).any()):
        raise BadData("no latent, error or bias influences the targets, so there is nothing to rank.")
    if nodes is not None:
        if nodes < 1:
            raise BadData(f"a graph of {nodes} nodes has nothing left to run; keep at least 1.")
        kept = largest(graph, scores, nodes)
        return graph.keep(kept, why=f"pruned to the {nodes} nodes of largest influence")
    if share is None or not 0 < share <= 1:
        raise BadData(f"a share of influence lies above 0 and up to 1, not {share}.")
    stay = always(graph)
    kept = (scores >= smallest_kept(scores[~stay], share)) | stay
    return graph.keep(kept, why=f"pruned to {share:g} of influence")


def always(graph: Graph) -> Bool[Tensor, " n"]:
    """Inputs and targets."""
    return torch.stack([graph.nodes.where(kind) for kind in ALWAYS]).any(0)


def largest(graph: Graph, scores: Float[Tensor, " n"], nodes: int) -> Bool[Tensor, " n"]:
    """Which nodes stay: the highest scoring `nodes` (all if there are fewer), inputs and targets. Ties by index."""
    stay = always(graph)
    return stay | _top(scores, ~stay, nodes)


def same_kinds(graph: Graph, kept: Bool[Tensor, " n"], scores: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """A rival of `kept` by other scores: of every kind (of latents: of every dictionary) as many nodes, the highest."""
    out = always(graph)
    for kind in set(KINDS) - set(ALWAYS):
        mine = graph.nodes.where(kind)
        for owner in graph.nodes.dictionary[mine & kept].unique():
            among = mine & (graph.nodes.dictionary == owner)
            out |= _top(scores, among, int((among & kept).sum()))
    return out


def _top(scores: Tensor, among: Tensor, n: int) -> Tensor:
    ids = among.nonzero().squeeze(-1)
    best = ids[scores[ids].argsort(descending=True, stable=True)[:n]]
    return torch.zeros_like(among).index_fill_(0, best, True)
