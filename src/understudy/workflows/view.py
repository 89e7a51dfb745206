"""`view`: the part of a graph that a page can show."""

from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.graph import Graph
from understudy.core.records.config import Config
from understudy.core.records.graph import KINDS, GraphCard
from understudy.core.records.graph_view import GraphView, ViewEdge, ViewNode
from understudy.core.records.progress import SILENT, Progress
from understudy.pruning import cumulative_share, edge_influence, influence, largest, score_graph
from understudy.workflows._graphs import open_graph

NEAREST = 7
"""Edges that are listed at each node, in and out."""


NEAR_THRESHOLD = 12
"""Silent latents that are shown, where the graph has any."""


class ViewConfig(Config):
    """What to show."""

    graph: Path
    """An .acg folder, or a JSON file of circuit-tracer or Neuronpedia."""
    out: Path | None = None
    """HTML file; GRAPH.html beside the graph unless named. An older one is replaced."""
    nodes: PositiveInt = 120
    """Latents and errors that are shown, the most influential."""
    edges: PositiveInt = 700
    """Edges that are drawn, those that most influence flows through."""


@torch.no_grad()
def view(config: ViewConfig, progress: Progress = SILENT) -> GraphView:
    """The page's data. What is not shown is in the remainders of what is. Raises BadInput and its kin."""
    graph = open_graph(config.graph)
    scores = influence(graph)
    part, kept = _shown(graph, scores, config.nodes)
    mass = part.rows.mass
    edges, into, out = _edges(part, config.edges)
    levels, names = _levels(part)
    ranks = cumulative_share(torch.where(part.nodes.where("bias"), 0.0, scores[kept]))
    bias = _from_biases(part)
    lost = part.rows.remainder_abs / mass.clamp(min=1e-300)
    nodes = [
        ViewNode(
            name=name, kind=KINDS[kind], level=level, place=place, influence=share, rank=rank, value=value,
            threshold=threshold, bias=b, remainder=r, remainder_share=min(1.0, l), incoming=i, outgoing=o,
        )
        for name, kind, level, place, share, rank, value, threshold, b, r, l, i, o in zip(
            part.names(), part.nodes.kind.tolist(), levels, part.nodes.place.tolist(), scores[kept].tolist(),
            ranks.tolist(), part.nodes.value.tolist(), part.nodes.threshold.tolist(), bias.tolist(),
            part.rows.remainder.tolist(), lost.tolist(), into, out, strict=True,
        )
    ]  # fmt: skip
    return GraphView(
        title=config.graph.name, card=part.card, history=part.history, whole=score_graph(graph),
        shown=score_graph(part), levels=names, nodes=nodes, edges=edges,
        drawn=min(config.edges, len(edges)),
    )  # fmt: skip


def _shown(graph: Graph, scores: Tensor, n: int) -> tuple[Graph, Tensor]:
    """The n most influential latents and errors, the silent latents nearest to their threshold, and all inputs, biases
    and targets."""
    bias, below = graph.nodes.where("bias"), graph.nodes.threshold - graph.nodes.value
    silent = (graph.nodes.where("latent") & (below >= 0)).nonzero().squeeze(-1)
    kept = largest(graph, torch.where(bias, -1.0, scores), n) | bias
    kept[silent[below[silent].argsort(stable=True)[:NEAR_THRESHOLD]]] = True
    return graph.keep(kept, why=f"shown are the {n} latents and errors of largest influence"), kept


def _edges(graph: Graph, n: int) -> tuple[list[ViewEdge], list[list[int]], list[list[int]]]:
    """The n edges that most flows through and the strongest of every node, in order of flow; and for each node the
    numbers of its strongest in (by share of what flows in) and out (by flow). Those of biases are figures of theirs."""
    rows = graph.rows
    kept = (~graph.nodes.where("bias")[rows.sources.long()]).nonzero().squeeze(-1)
    flows = edge_influence(graph)
    order = kept[flows[kept].argsort(descending=True, stable=True)]
    shares = rows.weights.double().abs() / rows.mass[rows.targets].clamp(min=1e-300)
    columns = (rows.sources, rows.targets, rows.weights, shares, flows)
    edges = [
        ViewEdge(source=s, target=t, weight=w, share=share, flow=flow)
        for s, t, w, share, flow in zip(*(x[order].tolist() for x in columns), strict=True)
    ]
    into, out = [[] for _ in range(len(graph))], [[] for _ in range(len(graph))]
    for i, edge in enumerate(edges):
        into[edge.target].append(i)
        out[edge.source].append(i)
    into = [sorted(ids, key=lambda i: -edges[i].share)[:NEAREST] for ids in into]
    out = [ids[:NEAREST] for ids in out]
    needed = sorted({*range(min(n, len(edges))), *(i for ids in (*into, *out) for i in ids)})
    number = {old: new for new, old in enumerate(needed)}

    def renumbered(lists: list[list[int]]) -> list[list[int]]:
        return [[number[i] for i in ids] for ids in lists]

    return [edges[i] for i in needed], renumbered(into), renumbered(out)


def _from_biases(graph: Graph) -> Tensor:
    bias = graph.nodes.where("bias")[graph.rows.sources.long()]
    sums = torch.zeros(len(graph), dtype=torch.float64)
    return sums.index_add_(0, graph.rows.targets[bias], graph.rows.weights[bias].double())


def _levels(graph: Graph) -> tuple[list[int], list[str]]:
    """The row of every node, and the rows' names: inputs, dictionaries by their first node, targets."""
    card, nodes = graph.card, graph.nodes
    present = [int(d) for d in nodes.dictionary[nodes.where("latent")].unique()]
    first = {d: int((nodes.dictionary == d).nonzero()[0]) for d in present}
    order = sorted(first, key=first.__getitem__)
    row = {d: i + 1 for i, d in enumerate(order)}
    last = len(order) + 1
    by_site = _rows_of_sites(card, row, last)
    levels = []
    for kind, owner, site in zip(nodes.kind.tolist(), nodes.dictionary.tolist(), nodes.site.tolist(), strict=True):
        match KINDS[kind]:
            case "latent":
                levels.append(row[owner])
            case "target":
                levels.append(last)
            case "error":
                levels.append(by_site.get(site, max(last - 1, 1)))
            case _:
                levels.append(0)
    names = [card.dictionaries[d].name or card.dictionaries[d].writes[0] for d in order]
    return levels, ["inputs", *names, "targets"]


def _rows_of_sites(card: GraphCard, row: dict[int, int], last: int) -> dict[int, int]:
    """An error lies with the dictionary that writes its site; where that has no latents, with the one before."""
    out, before = {}, 1
    for d, dictionary in enumerate(card.dictionaries):
        before = row.get(d, min(before, max(last - 1, 1)))
        out |= {card.sites.index(s): before for s in dictionary.writes if s in card.sites}
    return out
