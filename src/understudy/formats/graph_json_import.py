"""Graphs made by others, from the JSON of circuit-tracer and Neuronpedia.

Their files say which edges were kept, not how much was dropped. What an active feature's links lack to its activation
is known, and becomes its remainder; the absolute mass behind it is not, and is taken to be no more. Scores of such a
graph are therefore flattering, as theirs are.
"""

import heapq
import math
import re
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from understudy.core.graph import Graph, Nodes, Rows
from understudy.core.records.errors import BadData
from understudy.core.records.graph import KINDS, DictionaryCard, GraphCard, TargetCard

NOTE = "imported: the file does not say what was dropped, so remainders are lower bounds"


class _Metadata(BaseModel):
    scan: str
    prompt_tokens: list[str]
    schema_version: int | None = None


class _Node(BaseModel):
    node_id: str
    feature: int | None = None
    layer: str | int
    ctx_idx: int
    feature_type: str
    clerp: str = ""
    token_prob: float = 0.0
    activation: float | None = None


class _Link(BaseModel):
    source: str
    target: str
    weight: float


class _File(BaseModel):
    metadata: _Metadata
    nodes: list[_Node]
    links: list[_Link]


def from_json(data: Any) -> Graph:
    """A graph from the parsed JSON of circuit-tracer or Neuronpedia. Raises BadData saying what does not fit.

    Nodes are put in the order of computation. The graph cannot be run: the file does not name its dictionaries' arrays.
    """
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the top"
        raise BadData(f"this is not an attribution graph: {first['msg']} at {where}.") from None
    links = _links(file)
    nodes = _in_order(file.nodes, links)
    if not any(_kind(n) == "target" for n in nodes):
        raise BadData("this graph has no logit node, so nothing says where influence starts.")
    rows = _rows(nodes, links)
    kinds = [_kind(n) for n in nodes]
    layers = sorted({_layer(n) for n, k in zip(nodes, kinds, strict=True) if k in ("latent", "error", "bias")})
    number = {layer: i for i, layer in enumerate(layers)}
    sums = rows.total
    value = torch.tensor(
        [
            float(sums[i]) if k == "target" or n.activation is None else n.activation
            for i, (n, k) in enumerate(zip(nodes, kinds, strict=True))
        ]
    )
    rest = torch.where(torch.tensor([k == "latent" for k in kinds]), value - sums.float(), 0.0)
    at_target = iter(range(len(nodes)))
    columns = Nodes(
        kind=torch.tensor([KINDS.index(k) for k in kinds], dtype=torch.uint8),
        dictionary=_short([number[_layer(n)] if k == "latent" else -1 for n, k in zip(nodes, kinds, strict=True)]),
        latent=torch.tensor(
            [
                _index(n, file.metadata) if k == "latent" else next(at_target) if k == "target" else -1
                for n, k in zip(nodes, kinds, strict=True)
            ],
            dtype=torch.int32,
        ),
        place=torch.tensor([n.ctx_idx for n in nodes], dtype=torch.int32),
        site=_short([number.get(_layer(n), -1) if k != "target" else -1 for n, k in zip(nodes, kinds, strict=True)]),
        value=value,
        threshold=torch.zeros(len(nodes)),
    )
    kept = Rows(rows.offsets, rows.sources, rows.weights, rest, rest.abs())
    return Graph(columns, kept, _card(file, nodes, columns, layers), ("imported from JSON",))


def _short(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int16)


def _kind(node: _Node) -> str:
    kind = node.feature_type.lower()
    if kind in ("embedding", "logit", "bias"):
        return {"embedding": "input", "logit": "target", "bias": "bias"}[kind]
    return "error" if "error" in kind else "latent"


def _layer(node: _Node) -> int:
    try:
        return int(node.layer)
    except ValueError:
        return -1


def _index(node: _Node, metadata: _Metadata) -> int:
    """The latent's number in its layer: from the id where it says so, else from the Cantor number."""
    found = re.fullmatch(rf"{_layer(node)}_(?:\w+_)?(\d+)_{node.ctx_idx}", node.node_id)
    if found:
        return int(found[1])
    z = node.feature or 0
    if metadata.schema_version != 1 or z < 0:
        return max(z, 0)
    w = (math.isqrt(8 * z + 1) - 1) // 2
    return z - w * (w + 1) // 2


def _links(file: _File) -> dict[tuple[str, str], float]:
    ids, out = {}, {}
    for node in file.nodes:
        if node.node_id in ids:
            raise BadData(
                f"two nodes are called {node.node_id!r} (a {ids[node.node_id]} and a {node.feature_type}), so its "
                "links are ambiguous. Older files of circuit-tracer number errors like features of layer 0: make the "
                "file again with a newer version."
            )
        ids[node.node_id] = node.feature_type
    kinds = {n.node_id: _kind(n) for n in file.nodes}
    for link in file.links:
        for end in (link.source, link.target):
            if end not in ids:
                raise BadData(f"a link names the node {end!r}, which the file does not hold.")
        if kinds[link.target] not in ("latent", "target"):
            raise BadData(f"a link leads to {link.target!r}, a {ids[link.target]}, which is not computed from others.")
        if not math.isfinite(link.weight):
            raise BadData(f"the link from {link.source!r} to {link.target!r} weighs {link.weight}.")
        out[link.source, link.target] = out.get((link.source, link.target), 0.0) + link.weight
    return out


def _in_order(nodes: list[_Node], links: dict[tuple[str, str], float]) -> list[_Node]:
    """Sources before targets, else by layer, kind and place. Raises BadData for a circle."""
    by_id = {n.node_id: n for n in nodes}
    waits, leads = dict.fromkeys(by_id, 0), {i: [] for i in by_id}
    for source, target in links:
        waits[target] += 1
        leads[source].append(target)
    order = ("input", "latent", "bias", "error", "target")

    def rank(name: str) -> tuple:
        node, kind = by_id[name], _kind(by_id[name])
        return kind == "target", -1 if kind == "input" else _layer(node), order.index(kind), node.ctx_idx, name

    ready = [rank(i) for i, n in waits.items() if not n]
    heapq.heapify(ready)
    out = []
    while ready:
        name = heapq.heappop(ready)[-1]
        out.append(by_id[name])
        for target in leads[name]:
            waits[target] -= 1
            if not waits[target]:
                heapq.heappush(ready, rank(target))
    if len(out) < len(nodes):
        left = next(i for i, n in waits.items() if n)
        raise BadData(f"the links run in a circle through {left!r}; a graph on one input has none.")
    return out


def _rows(nodes: list[_Node], links: dict[tuple[str, str], float]) -> Rows:
    number = {n.node_id: i for i, n in enumerate(nodes)}
    edges = sorted((number[t], number[s], w) for (s, t), w in links.items())
    counts = torch.bincount(torch.tensor([t for t, _, _ in edges], dtype=torch.long), minlength=len(nodes))
    nothing = torch.zeros(len(nodes))
    return Rows(
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        sources=torch.tensor([s for _, s, _ in edges], dtype=torch.int32),
        weights=torch.tensor([w for _, _, w in edges], dtype=torch.float32),
        remainder=nothing,
        remainder_abs=nothing,
    )


def _card(file: _File, nodes: list[_Node], columns: Nodes, layers: list[int]) -> GraphCard:
    logits = [n for n in nodes if _kind(n) == "target"]
    whole = sum(n.token_prob for n in logits)
    latents = columns.where("latent")
    most = [columns.latent[latents & (columns.dictionary == i)] for i in range(len(layers))]
    return GraphCard(
        network=file.metadata.scan,
        network_fingerprint="",
        run=None,
        dictionaries=[
            DictionaryCard(
                kind="imported",
                reads=[f"layers.{layer}"],
                writes=[f"layers.{layer}"],
                n_latents=int(ids.max()) + 1 if len(ids) else 0,
                fingerprint="",
            )
            for layer, ids in zip(layers, most, strict=True)
        ],
        sites=[f"layers.{layer}" for layer in layers],
        tokens=file.metadata.prompt_tokens,
        shape=(len(file.metadata.prompt_tokens),),
        targets=[
            TargetCard(
                name=n.clerp or n.node_id,
                weight=n.token_prob / whole if whole else 1 / len(logits),
                output=n.feature,
                probability=n.token_prob or None,
            )
            for n in logits
        ],
        note=NOTE,
    )
