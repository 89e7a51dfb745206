"""Graphs as JSON: what both viewers require, without what is known to break them, and back again."""

import json
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict

from tests.graphs import HOSTILE, card, dense, graph_of, layered
from tests.pruning import published
from understudy.core.graph import Graph
from understudy.core.records.errors import BadData, TooLarge
from understudy.core.records.graph import KINDS
from understudy.formats import graph_json
from understudy.formats.graph_json import REST, cantor, to_json
from understudy.formats.graph_json_import import from_json

# What the viewers read, from their schemas; nothing else is written.


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    slug: str
    scan: str
    transcoder_list: list[str]
    prompt_tokens: list[str]
    prompt: str
    schema_version: Literal[1]
    info: dict[str, Any]
    generation_settings: dict[str, Any]
    pruning_settings: dict[str, Any]


class QParams(Strict):
    pinnedIds: list[str]
    supernodes: list[list[str]]
    linkType: str
    clickedId: str
    sg_pos: str


class Node(Strict):
    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: Literal["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]
    jsNodeId: str
    clerp: str
    token_prob: float
    is_target_logit: bool
    run_idx: int
    reverse_ctx_idx: int
    influence: float | None
    activation: float | None


class Link(Strict):
    source: str
    target: str
    weight: float


class File(Strict):
    metadata: Metadata
    qParams: QParams
    nodes: list[Node]
    links: list[Link]


def opens(data: dict) -> File:
    """What both viewers need of a file, as far as it is known to break."""
    file = File.model_validate(json.loads(json.dumps(data, allow_nan=False)))
    ids = [n.node_id for n in file.nodes]
    assert len(set(ids)) == len(ids)
    assert len({n.jsNodeId for n in file.nodes if n.feature_type == "mlp reconstruction error"}) == len(
        [n for n in file.nodes if n.feature_type == "mlp reconstruction error"]
    )
    assert {end for link in file.links for end in (link.source, link.target)} <= set(ids)
    tokens = file.metadata.prompt_tokens
    assert len(tokens) >= 2
    assert all(0 <= n.ctx_idx < len(tokens) for n in file.nodes)
    assert all(n.layer == "E" or n.layer.isdigit() for n in file.nodes)
    logits = [n for n in file.nodes if n.feature_type == "logit"]
    others = [n for n in file.nodes if n.feature_type != "logit"]
    assert max(int(n.layer) for n in others if n.layer != "E") >= 1
    assert all(float(n.clerp.split("(p=")[1].split(")")[0]) == pytest.approx(n.token_prob, abs=1e-3) for n in logits)
    assert [n.is_target_logit for n in logits] == [True] + [False] * (len(logits) - 1)
    assert [n.feature for n in logits] == sorted(n.feature for n in logits)
    assert file.nodes[len(others) :] == logits
    # One viewer deletes a feature that occurs at more than two thirds of the tokens under one (layer, feature, place).
    seen = [(n.layer, n.feature, n.ctx_idx) for n in file.nodes]
    assert max(seen.count(s) for s in seen) <= max(1, 2 * len(tokens) / 3)
    assert len(file.metadata.transcoder_list) > max(int(n.layer) for n in others if n.layer != "E")
    return file


def pruned(**options) -> Graph:
    graph, _ = layered(1, tokens=(" a", HOSTILE, "c"), biases=True, **options)
    return graph.keep(torch.rand(len(graph), generator=torch.Generator().manual_seed(1)) < 0.7)


def test_a_graph_opens_in_both_viewers():
    graph = pruned()
    shares = torch.linspace(0, 1, len(graph), dtype=torch.float64)
    file = opens(to_json(graph, shares, slug="a graph/1", settings={"scores": {"replacement": 0.5}}))
    assert file.metadata.slug == "a-graph-1"
    assert file.metadata.generation_settings["scores"] == {"replacement": 0.5}
    assert file.metadata.generation_settings["layers"]["2"] == "model.layers.2.mlp:out"
    assert file.metadata.prompt_tokens == [" a", HOSTILE, "c"]
    by_id = {n.node_id: n for n in file.nodes}
    latents = graph.nodes.where("latent").nonzero().flatten().tolist()
    i = latents[3]
    layer, number, place = (int(getattr(graph.nodes, c)[i]) for c in ("dictionary", "latent", "place"))
    node = by_id[f"{layer}_{number}_{place}"]
    assert node.feature == cantor(layer, number)
    assert node.activation == float(graph.nodes.value[i])
    assert node.influence == float(shares[i])


def test_links_sum_to_pre_activations():
    """Biases and what was dropped are in the file too, folded into one node."""
    graph = pruned()
    file = opens(to_json(graph))
    sums: dict[str, float] = {}
    for link in file.links:
        sums[link.target] = sums.get(link.target, 0) + link.weight
    totals = graph.rows.total[graph.rows.mass > 0]
    assert sorted(sums.values()) == pytest.approx(sorted(totals.tolist()), abs=1e-5)
    assert any(link.source == REST for link in file.links)
    assert not any("bias_" in n.node_id for n in file.nodes)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_browser_computes_is_what_we_compute(seed):
    """Neuronpedia recomputes the scores from the file: nodes by type, probabilities as starts."""
    from understudy.pruning import score_graph

    graph, _ = layered(seed, layers=4)
    file = opens(to_json(graph))
    number = {n.node_id: i for i, n in enumerate(file.nodes)}
    a = torch.zeros(len(file.nodes), len(file.nodes), dtype=torch.float64)
    for link in file.links:
        a[number[link.target], number[link.source]] = link.weight
    kinds = {k: torch.tensor([n.feature_type == k for n in file.nodes]) for k in
             ("embedding", "mlp reconstruction error", "logit", "cross layer transcoder")}  # fmt: skip
    start = torch.tensor([n.token_prob for n in file.nodes], dtype=torch.float64)
    theirs = published.Kinds(
        kinds["cross layer transcoder"], kinds["mlp reconstruction error"], kinds["embedding"] | kinds["logit"], start
    )
    replacement, completeness = published.scores(a, theirs, kinds["embedding"])
    ours = score_graph(graph)
    assert ours.replacement.value == pytest.approx(replacement, abs=1e-9)
    assert ours.completeness.value == pytest.approx(completeness, abs=1e-9)


def test_errors_and_features_that_would_share_a_name_do_not():
    """Feature 1 of layer 0 at place 2 and the error of layer 1 there: `0_1_2` twice, in the scheme of others."""
    graph, _ = layered(0, layers=2, per_cell=1, tokens=(" a", " b", " c"))
    assert (graph.nodes.latent[graph.nodes.where("latent") & (graph.nodes.place == 2)] == 2).all()
    ids = [n.node_id for n in opens(to_json(graph)).nodes]
    assert {"0_1_1", "err_1_1", "0_2_2", "err_1_2"} <= set(ids)


def test_two_errors_at_one_layer_and_place_have_two_names():
    graph, _ = layered(0, layers=2)
    site = torch.where(graph.nodes.where("error"), 1, graph.nodes.site.long()).to(torch.int16)
    ids = [n.node_id for n in opens(to_json(replace(graph, nodes=replace(graph.nodes, site=site)))).nodes]
    assert {"err_0_0", "err_0_0-2"} <= set(ids)


@pytest.mark.parametrize("tokens", [(), (" one",)])
def test_networks_of_one_layer_and_one_place_open(tokens):
    base = card(1, [" x"], [1.0])
    kinds = [KINDS.index(k) for k in ("input", "bias", "latent", "error", "target")]
    a = torch.zeros(5, 5, dtype=torch.float64)
    a[2, :2], a[4, 2:4] = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    columns = {"kind": kinds, "dictionary": [-1, -1, 0, -1, -1], "latent": [-1, -1, 4, -1, 0],
               "place": [-1] * 5, "site": [0, 1, 1, 1, -1]}  # fmt: skip
    targets = [base.targets[0].model_copy(update={"output": None, "name": "class 3"})]
    lone = base.model_copy(update={"tokens": list(tokens), "shape": (), "inputs": {}, "targets": targets})
    file = opens(to_json(graph_of(a, columns, lone)))
    assert file.metadata.prompt_tokens == (["<in>", "<out>"] if not tokens else [" one", "<out>"])
    assert next(n for n in file.nodes if n.feature_type == "logit").clerp == 'Output "class 3" (p=1.000)'
    assert [n.feature for n in file.nodes if n.feature_type.startswith("cross")] == [cantor(1, 4)]


def test_names_of_layers_follow_the_sites_only_where_that_tells_them_apart():
    graph, _ = layered(0, layers=2)
    same = [d.model_copy(update={"writes": ["h.5:out"], "reads": ["h.5:in"]}) for d in graph.card.dictionaries]
    twice = replace(graph, card=graph.card.model_copy(update={"dictionaries": same}))
    layers = {n.layer for n in opens(to_json(twice)).nodes if n.feature_type.startswith("cross")}
    assert layers == {"0", "1"}
    far = [d.model_copy(update={"writes": [f"h.{7 + i}:out"]}) for i, d in enumerate(same)]
    apart = replace(graph, card=graph.card.model_copy(update={"dictionaries": far}))
    assert {n.layer for n in opens(to_json(apart)).nodes if n.feature_type.startswith("cross")} == {"7", "8"}


def test_a_target_whose_text_looks_like_a_probability_opens():
    graph, _ = layered(0)
    targets = [t.model_copy(update={"name": "'(p=x'"}) for t in graph.card.targets]
    opens(to_json(replace(graph, card=graph.card.model_copy(update={"targets": targets}))))


def test_graphs_too_large_for_a_viewer_are_refused(monkeypatch):
    graph, _ = layered(0)
    monkeypatch.setattr(graph_json, "MOST_LINKS", 10)
    with pytest.raises(TooLarge, match="Prune first"):
        to_json(graph)


def test_cantor_numbers():
    assert [cantor(*p) for p in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))] == [0, 1, 2, 3, 4, 5]
    for x, y in ((0, 0), (25, 16383), (3, 10**6)):
        z = cantor(x, y)
        w = (math.isqrt(8 * z + 1) - 1) // 2
        assert (w - (z - w * (w + 1) // 2), z - w * (w + 1) // 2) == (x, y)


# -- and back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_comes_back(seed):
    graph, _ = layered(seed)
    back = from_json(json.loads(json.dumps(to_json(graph))))

    def edges(g: Graph) -> dict:
        n = g.nodes
        keys = list(zip(n.kind.tolist(), n.dictionary.tolist(), n.place.tolist(), n.latent.tolist()))
        at = dense(g).nonzero().tolist()
        return {
            (keys[t], keys[s], n.site[s].item() if n.where("error")[s] else 0): float(dense(g)[t, s]) for t, s in at
        }

    mine, theirs = edges(graph), edges(back)
    assert len(mine) == len(theirs) == graph.n_edges
    assert sorted(mine.values()) == sorted(theirs.values())
    assert {k[:2] for k in mine if k[1][0] == 3} == {k[:2] for k in theirs if k[1][0] == 3}
    assert back.card.tokens == graph.card.tokens
    assert [t.weight for t in back.card.targets] == pytest.approx([0.6, 0.4])
    assert "do not run" not in back.card.note
    from understudy.pruning import score_graph

    assert score_graph(back).replacement.value == pytest.approx(score_graph(graph).replacement.value, abs=1e-6)


def test_what_their_links_lack_becomes_the_remainder():
    graph = pruned()
    data = to_json(graph)
    data["links"] = [link for link in data["links"] if link["source"] != REST]
    back = from_json(data)
    latents = back.nodes.where("latent")
    values = {round(v, 4) for v in back.nodes.value[latents].tolist()}
    assert values <= {round(v, 4) for v in graph.nodes.value.tolist()}
    assert torch.allclose(back.rows.total[latents].float(), back.nodes.value[latents], atol=1e-5)


def theirs() -> dict:
    """As circuit-tracer writes it: two layers, two tokens."""

    def node(name: str, feature: int, layer: str, at: int, kind: str, **more) -> dict:
        return {"node_id": name, "feature": feature, "layer": layer, "ctx_idx": at, "feature_type": kind,
                "jsNodeId": name, "clerp": "", **more}  # fmt: skip

    return {
        "metadata": {"slug": "s", "scan": "gemma-2-2b", "transcoder_list": [], "prompt_tokens": ["<bos>", "a"],
                     "prompt": "a", "schema_version": 1},
        "qParams": {},
        "nodes": [
            node("3_9_1", 9, "3", 1, "logit", clerp='Output "x" (p=0.500)', token_prob=0.5),
            node("1_5_1", cantor(1, 5), "1", 1, "cross layer transcoder", activation=3.0),
            node("0_1_1", -1, "1", 1, "mlp reconstruction error"),
            node("E_7_1", 1, "E", 1, "embedding"),
        ],
        "links": [
            {"source": "1_5_1", "target": "3_9_1", "weight": 2.0},
            {"source": "0_1_1", "target": "3_9_1", "weight": -1.0},
            {"source": "E_7_1", "target": "1_5_1", "weight": 2.5},
        ],
    }  # fmt: skip


def test_their_files_open():
    graph = from_json(theirs())
    assert graph.names() == ["'a'@1", "layers.1/5@1", "error layers.1@1", 'Output "x" (p=0.500)']
    assert graph.rows.remainder.tolist() == [0, 0.5, 0, 0]
    assert graph.card.targets[0].weight == 1
    odd = theirs()
    odd["nodes"][1]["node_id"] = "f"
    odd["links"][0]["source"] = odd["links"][2]["target"] = "f"
    assert from_json(odd).names()[1] == "layers.1/5@1", "the number is read from Cantor's"


def broken(change) -> dict:
    data = theirs()
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("links"), "not an attribution graph: Field required at links"),
        (lambda d: d["nodes"][0].update(ctx_idx="x"), r"at nodes\.0\.ctx_idx"),
        (lambda d: d["nodes"].append(d["nodes"][1]), "two nodes are called '1_5_1'"),
        (lambda d: d["links"][0].update(source="gone"), "names the node 'gone'"),
        (lambda d: d["links"][0].update(target="E_7_1"), "a embedding, which is not computed"),
        (lambda d: d["links"][0].update(weight=float("inf")), "weighs inf"),
        (lambda d: d["links"].append({"source": "3_9_1", "target": "1_5_1", "weight": 1}), "in a circle"),
        (lambda d: (d["nodes"].pop(0), d["links"].__delitem__(slice(0, 2))), "no logit node"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, match):
    with pytest.raises(BadData, match=match):
        from_json(broken(change))


def test_what_is_no_object_is_refused():
    for data in (None, [], 3, "graph"):
        with pytest.raises(BadData, match="not an attribution graph"):
            from_json(data)
