"""A graph: nothing is lost when parts of it go, and a folder is whole, refused or absent."""

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.graphs import HOSTILE, dense, layered
from understudy.core.graph import COLUMNS, Graph
from understudy.core.records.errors import BadData, BadFolder, BadWeights, DiskFull, UnknownName
from understudy.core.records.graph import KINDS

FILES = ("graph.json", "nodes.parquet", "rows.safetensors")


@pytest.fixture
def graph() -> Graph:
    return layered(0, tokens=(" a", HOSTILE, "\ud800\x00"), biases=True)[0]


@pytest.fixture
def folder(graph, tmp_path) -> Path:
    return graph.save(tmp_path / "X.acg")


def same(a: Graph, b: Graph) -> bool:
    nodes = all(torch.equal(getattr(a.nodes, c), getattr(b.nodes, c)) for c in COLUMNS)
    parts = ("offsets", "sources", "weights", "remainder", "remainder_abs")
    rows = all(torch.equal(getattr(a.rows, p), getattr(b.rows, p)) for p in parts)
    return nodes and rows and a.history == b.history and a.card == b.card


# -- parts ------------------------------------------------------------------------------------------------------------


def test_rows_know_their_totals():
    graph, a = layered(0)
    assert torch.allclose(graph.rows.total, a.sum(1))
    assert torch.allclose(graph.rows.mass, a.abs().sum(1))
    t = int(graph.nodes.where("target").nonzero()[0])
    sources, weights = graph.rows.row(t)
    assert torch.equal(a[t][sources.long()].float(), weights)
    assert len(sources) == int((a[t] != 0).sum())


def test_what_is_dropped_is_folded_into_the_remainder(graph):
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(len(graph), generator=generator) < 0.6
    edges = torch.rand(graph.n_edges, generator=generator) < 0.6
    less = graph.keep(nodes, edges, why="by lot")
    kept = nodes | graph.nodes.where("target")
    a = dense(graph)
    chosen = torch.zeros_like(a, dtype=torch.bool)
    chosen[graph.rows.targets, graph.rows.sources.long()] = edges
    assert torch.equal(dense(less), (a * chosen)[kept][:, kept])
    gone = a * ~(chosen & kept[None])
    assert torch.allclose(less.rows.remainder.double(), gone.sum(1)[kept], atol=1e-5)
    assert torch.allclose(less.rows.remainder_abs.double(), gone.abs().sum(1)[kept], atol=1e-5)
    assert torch.allclose(less.rows.total, graph.rows.total[kept], atol=1e-5)
    assert torch.allclose(less.rows.mass, graph.rows.mass[kept], atol=1e-5)
    assert less.history == ("by lot",)
    again = less.keep(torch.zeros(len(less), dtype=torch.bool))
    assert len(again) == 2
    assert torch.allclose(again.rows.total, graph.rows.total[graph.nodes.where("target")], atol=1e-5)


def test_kept_latents_are_those_of_the_nodes(graph):
    kept = graph.kept_latents()
    assert sorted(kept) == [0, 1, 2]
    # Latent 7 i + place for 4 i and 3 places.
    assert all(ids.tolist() == sorted(7 * i + p for i in range(4) for p in range(3)) for ids in kept.values())
    one = graph.keep(graph.nodes.where("latent") & (graph.nodes.dictionary == 1))
    assert [len(ids) for ids in one.kept_latents().values()] == [0, 12, 0]


def test_nodes_have_names(graph):
    names = graph.names()
    assert names[0] == "' a'@0"
    assert names == [graph.name(i) for i in range(len(graph))]
    assert "model.layers.0.mlp:out/8@1" in names
    assert "error model.layers.2.mlp:out@2" in names
    assert "bias model.layers.1.mlp:out" in names
    assert names[-1] == "' out1' (p=0.40)"
    assert "3 input, 3 bias, 9 error, 36 latent, 2 target" in repr(graph)
    with pytest.raises(UnknownName, match="Did you mean latent"):
        graph.nodes.where("latents")


BAD = {
    "too few rows": lambda g: replace(g.rows, offsets=g.rows.offsets[:-1]),
    "too few edges": lambda g: replace(g.rows, sources=g.rows.sources[:-1]),
    "too few weights": lambda g: replace(g.rows, weights=g.rows.weights[:-1]),
    "offsets fall": lambda g: replace(g.rows, offsets=_with(g.rows.offsets, -2, 10**6)),
    "backwards": lambda g: replace(g.rows, sources=_with(g.rows.sources, 0, len(g) - 1)),
    "negative source": lambda g: replace(g.rows, sources=_with(g.rows.sources, 0, -1)),
    "NaN": lambda g: replace(g.rows, weights=_with(g.rows.weights, 5, float("nan"))),
    "infinite remainder": lambda g: replace(g.rows, remainder=_with(g.rows.remainder, 5, float("inf"))),
}


def _with(tensor: torch.Tensor, at: int, value: float) -> torch.Tensor:
    out = tensor.clone()
    out[at] = value
    return out


@pytest.mark.parametrize("what", BAD)
def test_parts_that_do_not_fit_are_refused(what, graph):
    with pytest.raises(BadData):
        replace(graph, rows=BAD[what](graph))


@pytest.mark.parametrize(("column", "value"), [("kind", 5), ("dictionary", 3), ("site", 4), ("latent", 2)])
def test_nodes_that_name_what_is_not_there_are_refused(column, value, graph):
    at = -1 if column == "latent" else int(graph.nodes.where("latent").nonzero()[0])
    with pytest.raises(BadData, match="but the graph's card holds"):
        replace(graph, nodes=replace(graph.nodes, **{column: _with(getattr(graph.nodes, column), at, value)}))


def test_rows_of_inputs_are_refused(graph):
    kind = _with(graph.nodes.kind, -1, KINDS.index("error"))
    with pytest.raises(BadData, match="has incoming edges"):
        replace(graph, nodes=replace(graph.nodes, kind=kind))


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_folder_opens_as_it_was_saved(graph, folder):
    opened = Graph.open(folder)
    assert same(opened.checked(), graph)
    assert opened.path == folder
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert [p.name for p in folder.parent.iterdir()] == ["X.acg"], "no temporary is left"
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in folder.iterdir())
    less = opened.keep(graph.nodes.where("input"), why="inputs only")
    assert same(Graph.open(less.save(folder.parent / "Y.acg")), less)
    assert less.path is None


def test_graphs_without_edges_and_without_nodes_are_graphs(graph, tmp_path):
    lone = graph.keep(torch.zeros(len(graph), dtype=torch.bool))
    assert same(Graph.open(lone.save(tmp_path / "lone.acg")).checked(), lone)
    assert not lone.n_edges
    assert len(lone) == 2


def test_nodes_open_as_a_table(graph, folder):
    table = pq.read_table(folder / "nodes.parquet")
    assert table.column_names == [*COLUMNS, "remainder", "remainder_abs", "name"]
    assert table["kind"].to_pylist() == [KINDS[k] for k in graph.nodes.kind.tolist()]
    assert table["value"].to_pylist() == graph.nodes.value.tolist()
    assert table["name"].to_pylist()[0] == "' a'@0"


def test_edges_are_not_read_when_a_folder_is_opened(folder):
    """Damage inside the edges is found when they are looked at, not before; a mapped weight is the file's own."""
    file = folder / "rows.safetensors"
    tensors = load_file(file)
    tensors["weights"][3] = float("nan")
    save_file(tensors, file)
    opened = Graph.open(folder)
    with pytest.raises(BadWeights, match=r"X\.acg was edited: a weight is NaN"):
        opened.checked()


def test_something_that_is_there_is_never_written_over(graph, folder):
    before = (folder / "graph.json").read_bytes()
    with pytest.raises(BadFolder, match=r"X\.acg exists already and is never written over"):
        graph.save(folder)
    assert (folder / "graph.json").read_bytes() == before
    file = folder.parent / "file"
    file.write_text("mine")
    for path in (file, file / "X.acg"):
        with pytest.raises(BadFolder):
            graph.save(path)
    (folder.parent / "empty").mkdir()
    assert same(Graph.open(graph.save(folder.parent / "empty")), graph)


@pytest.mark.parametrize(("density", "limit"), [(0.7, 1000), (0.02, 3000)])
def test_a_full_disk_leaves_nothing(density, limit, tmp_path):
    """Full while rows are written, or nodes."""
    graph, _ = layered(0, biases=True, density=density)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"no space left while writing .*X\.acg"):
            graph.save(tmp_path / "X.acg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(graph, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BadFolder, match="Permission denied"):
        graph.save(tmp_path / "X.acg")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_named(file, share, folder):
    path = folder / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises((BadFolder, BadWeights), match=file.replace(".", r"\.")):
        Graph.open(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_gone_or_a_pickle_is_named(file, folder, tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "pickle")
    (folder / file).write_bytes((tmp_path / "pickle").read_bytes())
    with pytest.raises((BadFolder, BadWeights), match=file.replace(".", r"\.")):
        Graph.open(folder)
    (folder / file).unlink()
    with pytest.raises((BadFolder, BadWeights), match=file.replace(".", r"\.")):
        Graph.open(folder)


def test_missing_graphs_and_other_folders_are_said(folder):
    with pytest.raises(BadFolder, match=r"there is no graph at .*Y\.acg\. Graphs beside it: .*X\.acg"):
        Graph.open(folder.parent / "Y.acg")
    with pytest.raises(BadFolder, match=r"is not a graph: it has no graph\.json"):
        Graph.open(folder.parent)


EDITS = {
    "nodes": 10**15,
    "edges": 3,
    "format": 2,
    "card": {"network": "toy"},
    "history": 3,
}


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_card_is_refused(key, folder):
    record = json.loads((folder / "graph.json").read_text())
    for value in (EDITS[key], None):
        (folder / "graph.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(BadFolder, match=r"graph\.json"):
            Graph.open(folder)


def test_edited_nodes_are_refused(folder):
    file = folder / "nodes.parquet"
    table = pq.read_table(file)
    n = table.num_rows

    def refuse(changed: pa.Table, match: str) -> None:
        pq.write_table(changed, file)
        with pytest.raises(BadWeights, match=match):
            Graph.open(folder)

    refuse(table.slice(1), r"nodes\.parquet holds 52 nodes")
    refuse(table.drop_columns(["value"]), "there is no column value")
    refuse(_exchanged(table, "value", ["1"] * n), "column value is not made of numbers")
    refuse(_exchanged(table, "place", [0.5] * n), "column place is not made of whole numbers")
    refuse(_exchanged(table, "place", [2**40] * n), "too large")
    refuse(_exchanged(table, "kind", ["latents"] * n), "does not hold the nodes")
    refuse(_exchanged(table, "kind", [3] * n), "does not hold the nodes")
    refuse(_exchanged(table, "value", [None, *[1.0] * (n - 1)]), "missing values")
    refuse(_exchanged(table, "dictionary", [7] * n), r"X\.acg was edited: a node names dictionary")
    # A billion equal lines take a few kilobytes: refused by their count, before they are read.
    pq.write_table(pa.table({"kind": pa.array([0] * 10**6, pa.int8())}), file)
    with pytest.raises(BadWeights, match="1000000 nodes"):
        Graph.open(folder)


def _exchanged(table: pa.Table, name: str, values: list) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_rows_of_another_make_are_refused(folder):
    file = folder / "rows.safetensors"
    rows = load_file(file)
    for changed in (
        {k: v for k, v in rows.items() if k != "offsets"},
        {**rows, "extra": rows["weights"]},
        {**rows, "weights": rows["weights"].double()},
        {**rows, "sources": rows["sources"][None]},
        {**rows, "offsets": rows["offsets"][:0]},
        {**rows, "offsets": rows["offsets"] + 1},
    ):
        save_file({k: v.clone() for k, v in changed.items()}, file)
        with pytest.raises((BadWeights, BadFolder), match=r"rows\.safetensors|X\.acg was edited"):
            Graph.open(folder)
