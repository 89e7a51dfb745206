"""Graphs as the JSON that circuit-tracer's and Neuronpedia's viewers open, and theirs as graphs of ours.

One file opens in both. It is written so that what is known to break naive files does not: node ids are unique, there
are at least two tokens, the largest layer is at least 1, features have Cantor ids (schema version 1), targets are
sorted by output. Viewers know no biases and no remainder: both are folded into one node of the type of an error, so
that the links into every node still sum to its pre-activation.
"""

import re
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.graph import Graph
from understudy.core.records.errors import TooLarge
from understudy.core.records.graph import KINDS, GraphCard

MOST_LINKS = 500_000
"""About 60 MB; Neuronpedia takes 100 MiB."""
FEATURE, ERROR, EMBEDDING, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
REST = "rest"
"""Id of the node that biases and remainders are folded into."""


def cantor(x: int, y: int) -> int:
    """One number for a pair: how the viewers name feature y of layer x."""
    return (x + y) * (x + y + 1) // 2 + y


def to_json(
    graph: Graph,
    influence: Float[Tensor, " n"] | None = None,
    slug: str = "graph",
    scan: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A graph as one JSON object for both viewers.

    influence: cumulative share at rank for each node; the viewers' slider keeps what is at or below it.
    slug: name in the viewer (letters, digits, `_.-`). scan: what Neuronpedia calls the model, circuit-tracer the
    transcoders; made from the network's fingerprint unless given. settings: added to `generation_settings`.
    Raises TooLarge beyond 500,000 links: prune first.
    """
    if graph.n_edges > MOST_LINKS:
        raise TooLarge(
            f"{graph.n_edges:,} edges are more than the viewers show ({MOST_LINKS:,}). Prune first: understudy prune."
        )
    tokens, layers = _tokens(graph.card), _Layers(graph)
    scan = scan or f"custom-{graph.card.network_fingerprint[:12]}"
    made = _nodes(graph, tokens, layers, influence)
    return {
        "metadata": {
            "slug": re.sub(r"[^a-zA-Z0-9_.-]+", "-", slug) or "graph",
            "scan": scan,
            "transcoder_list": [f"./{slug}-{i}" for i in range(layers.last + 1)] if scan.startswith("custom-") else [],
            "prompt_tokens": tokens,
            "prompt": "".join(tokens),
            "schema_version": 1,
            "info": {"description": graph.card.note, "generator": {"name": "understudy"}},
            "generation_settings": {
                "network": graph.card.network,
                "layers": {str(i): name for i, name in layers.names.items()},
                **(settings or {}),
            },
            "pruning_settings": {"history": list(graph.history)},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": _in_order(made),
        "links": _links(graph, made),
    }


class _Layers:
    """A number for every dictionary and site, unique for dictionaries; the largest is at least 1."""

    def __init__(self, graph: Graph) -> None:
        card = graph.card
        numbers = [_number_in(d.writes[0]) for d in card.dictionaries]
        named = None not in numbers and len(set(numbers)) == len(numbers)
        self.of_dictionary = [int(n or 0) for n in numbers] if named else list(range(len(numbers)))
        by_site = {
            s: i for i, d in zip(self.of_dictionary, card.dictionaries, strict=True) for s in (*d.reads, *d.writes)
        }
        self.of_site = [by_site.get(s, (_number_in(s) or 0) if named else 0) for s in card.sites]
        if max([*self.of_dictionary, *self.of_site], default=0) < 1:
            self.of_dictionary = [i + 1 for i in self.of_dictionary]
            self.of_site = [i + 1 for i in self.of_site]
        self.last = max([*self.of_dictionary, *self.of_site], default=1)
        self.names = {i: d.writes[0] for i, d in zip(self.of_dictionary, card.dictionaries, strict=True)}


def _number_in(site: str) -> int | None:
    found = re.findall(r"(?<![a-zA-Z0-9])\d+(?![a-zA-Z0-9])", site)
    return int(found[0]) if found else None


def _tokens(card: GraphCard) -> list[str]:
    """At least two: one viewer hides every node of a text of one token."""
    n = len(card.tokens) or int(torch.tensor(card.shape).prod())
    tokens = list(card.tokens) or [f"[{i}]" for i in range(n)]
    return tokens if n > 1 else [tokens[0] if card.tokens else "<in>", "<out>"]


def _nodes(graph: Graph, tokens: list[str], layers: _Layers, influence: Tensor | None) -> list[dict[str, Any] | None]:
    """One object a node, None for biases; at the end the node they are folded into."""
    columns = [getattr(graph.nodes, c).tolist() for c in ("kind", "dictionary", "latent", "place", "site")]
    on = (graph.nodes.value > graph.nodes.threshold).tolist()
    values = graph.nodes.value.tolist()
    shares = [None] * len(graph) if influence is None else influence.tolist()
    outputs = [t.output for t in graph.card.targets]
    virtual = max((o for o in outputs if o is not None), default=-1) + 1
    words = next(iter(graph.card.inputs.values()), [])
    made, taken = [], Counter[str]()
    for i, (kind, owner, number, place, site) in enumerate(zip(*columns, strict=True)):
        at = place if place >= 0 else 0
        match KINDS[kind]:
            case "latent":
                layer = layers.of_dictionary[owner]
                node = _node(f"{layer}_{number}_{at}", cantor(layer, number), str(layer), at, FEATURE)
                node |= {"jsNodeId": f"{layer}_{number}-0", "activation": values[i] if on[i] else 0.0}
            case "error":
                layer = layers.of_site[site] if site >= 0 else 0
                node = _node(f"err_{layer}_{at}", -1, str(layer), at, ERROR)
            case "input":
                word = words[place] if 0 <= place < len(words) else i
                node = _node(f"E_{word}_{at}", at, "E", at, EMBEDDING)
            case "target":
                target = graph.card.targets[number]
                word = virtual + number if target.output is None else target.output
                at = place if 0 < place < len(tokens) else len(tokens) - 1
                chance = target.weight if target.probability is None else target.probability
                # A viewer reads the probability after the first "(p=".
                label = re.sub(r"\s*\(p=[^)]*\)$", "", target.name).replace("(p=", "(p =")
                node = _node(f"{layers.last + 1}_{word}_{at}", word, str(layers.last + 1), at, LOGIT)
                node |= {"clerp": f'Output "{label}" (p={chance:.3f})', "token_prob": chance}
            case _:
                made.append(None)
                continue
        taken[node["node_id"]] += 1
        if (times := taken[node["node_id"]]) > 1:
            node |= {"node_id": f"{node['node_id']}-{times}", "jsNodeId": f"{node['jsNodeId']}-{times}"}
        made.append(node | {"influence": shares[i]})
    rest = _node(REST, -2, "0", 0, ERROR) | {"clerp": "biases, and what is not kept as a link", "influence": 0.0}
    return [*made, rest]


def _node(name: str, feature: int, layer: str, at: int, kind: str) -> dict[str, Any]:
    return {
        "node_id": name, "feature": feature, "layer": layer, "ctx_idx": at, "feature_type": kind, "jsNodeId": name,
        "clerp": "", "influence": None, "activation": None, "token_prob": 0.0, "is_target_logit": False, "run_idx": 0,
        "reverse_ctx_idx": 0,
    }  # fmt: skip


def _in_order(made: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Targets last and by output, since one viewer pairs probabilities with them in that order."""
    nodes = [n for n in made if n is not None]
    logits = sorted((n for n in nodes if n["feature_type"] == LOGIT), key=lambda n: n["feature"])
    for i, node in enumerate(logits):
        node["is_target_logit"] = i == 0
    return [n for n in nodes if n["feature_type"] != LOGIT] + logits


def _links(graph: Graph, made: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    rows = graph.rows
    ids = [None if n is None else n["node_id"] for n in made]
    bias = graph.nodes.where("bias")[rows.sources.long()]
    rest = rows.remainder.double().index_add(0, rows.targets[bias], rows.weights[bias].double())
    out = [
        {"source": ids[s], "target": ids[t], "weight": w}
        for s, t, w in zip(
            rows.sources[~bias].tolist(), rows.targets[~bias].tolist(), rows.weights[~bias].tolist(), strict=True
        )
    ]
    return out + [
        {"source": REST, "target": ids[t], "weight": float(rest[t])} for t in rest.nonzero().flatten().tolist()
    ]
