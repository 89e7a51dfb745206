"""`prune`, `view` and `export-graph`, as people call them."""

import json
from pathlib import Path

import pytest

from tests.graphs import layered
from understudy.cli.main import main
from understudy.core.graph import Graph


@pytest.fixture
def graph(tmp_path) -> Path:
    return layered(0, layers=4, biases=True)[0].save(tmp_path / "X.acg")


def called(capsys, *args: object) -> dict:
    code = main([*map(str, args), "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "exactly one JSON object"
    return {"code": code, **json.loads(out)}


def test_prune_to_a_size_writes_a_graph(capsys, graph, tmp_path):
    data = called(capsys, "prune", graph, "--nodes", 10, "--out", tmp_path / "Y.acg")
    assert data["code"] == 0
    made = Graph.open(tmp_path / "Y.acg").checked()
    counted = sum(data["after"]["kinds"][k] for k in ("latent", "error", "bias"))
    assert counted == 10
    assert len(made) == data["after"]["nodes"]
    assert data["after"]["remainder"]["value"] > data["before"]["remainder"]["value"] == 0
    assert made.history == ("pruned to the 10 nodes of largest influence",)


def test_prune_without_a_place_writes_nothing_and_says_so(capsys, graph, tmp_path):
    assert main(["prune", str(graph)]) == 0
    out = capsys.readouterr().out
    assert "nothing was written: name a folder with --out" in out
    assert "replacement score" in out
    assert [p.name for p in tmp_path.iterdir()] == ["X.acg"]


@pytest.mark.parametrize("by", ["activation", "random"])
def test_rivals_have_the_same_kinds(capsys, graph, by):
    ours = called(capsys, "prune", graph, "--nodes", 12)
    theirs = called(capsys, "prune", graph, "--nodes", 12, "--by", by)
    assert ours["after"]["kinds"] == theirs["after"]["kinds"]
    assert theirs["after"]["replacement"]["value"] < ours["after"]["replacement"]["value"]


def test_more_share_keeps_more(capsys, graph):
    sizes = [called(capsys, "prune", graph, "--share", s)["after"]["nodes"] for s in (0.1, 0.5, 0.9, 1)]
    assert sizes == sorted(set(sizes))


def test_view_writes_one_page_beside_the_graph(capsys, graph, tmp_path):
    data = called(capsys, "view", graph, "--nodes", 20)
    page = tmp_path / "X.html"
    assert data["page"] == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert called(capsys, "view", graph, "--out", tmp_path / "other.html")["nodes"] > data["nodes"]
    assert called(capsys, "view", graph)["code"] == 0, "a page is made anew"


def test_export_and_back(capsys, graph, tmp_path):
    data = called(capsys, "export-graph", graph, "--whole", "--scan", "gemma-2-2b", "--slug", "mine")
    file = json.loads((tmp_path / "X.json").read_text())
    assert file["metadata"]["scan"] == "gemma-2-2b"
    assert file["metadata"]["slug"] == "mine"
    assert 0 < file["metadata"]["generation_settings"]["scores"]["replacement"]["value"] < 1
    assert len(file["nodes"]) == data["nodes"]
    shares = sorted(n["influence"] for n in file["nodes"] if n["node_id"] != "rest")
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1)
    assert len([s for s in shares if s < 0.5]) < len(shares) / 2, "the first nodes hold most"
    small = called(capsys, "export-graph", graph, "--out", tmp_path / "small.json", "--nodes", 5)
    assert small["nodes"] < data["nodes"]
    # Their file opens wherever a graph does.
    assert called(capsys, "view", tmp_path / "X.json")["page"] == str(tmp_path / "X.html")
    assert called(capsys, "prune", tmp_path / "X.json", "--nodes", 5, "--out", tmp_path / "Z.acg")["code"] == 0
    assert Graph.open(tmp_path / "Z.acg").history[0] == "imported from JSON"


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        (["prune", "none.acg"], "BadFolder", "there is no graph at"),
        (["view", "none.json"], "BadData", "cannot read"),
        (["prune", "X.acg", "--nodes", "3", "--share", "0.5"], "BadInput", "give one"),
        (["prune", "X.acg", "--by", "random"], "BadInput", "give --nodes"),
        (["prune", "X.acg", "--nodes", "0"], "BadInput", "greater than 0"),
        (["prune", "X.acg", "--share", "1.5"], "BadInput", "less than or equal to 1"),
        (["prune", "X.acg", "--nodes", "3", "--out", "X.acg"], "BadFolder", "never written over"),
        (["export-graph", "X.acg", "--out", "cut.json"], "BadFolder", "never written over"),
        (["view", "cut.json"], "BadData", "not valid JSON"),
        (["export_graph", "X.acg"], "UnknownName", "Did you mean export-graph"),
    ],
)
def test_what_does_not_fit_is_said(capsys, graph, tmp_path, monkeypatch, args, error, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.json").write_text('{"nodes": [')
    data = called(capsys, *args)
    assert data["code"] == data["exit_code"] == 2
    assert data["error"] == error
    assert match in data["message"]
