"""`understudy attribute` on the demo network: with a run's dictionaries and with its own neurons."""

import json
from pathlib import Path

import pytest
import torch

from understudy.cli.main import main
from understudy.core.graph import Graph
from understudy.core.records.metric import Measured

TEXT = "def area(r):\n    return"


def test_neurons_of_a_network_without_any_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "g.acg"
    args = ["--network", "demo", "--sites", "mlp.0,mlp.3", "--input", TEXT, "--nodes", "60", "--check", "4"]
    assert main(["attribute", *args, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certificate"]["exact"], found["certificate"]
    assert found["nodes"]["latent"] == 60
    graph = Graph.open(out)
    assert len(graph) == sum(found["nodes"].values())
    computed = graph.nodes.computed
    torch.testing.assert_close(graph.rows.total[computed].float(), graph.nodes.value[computed], rtol=1e-4, atol=1e-4)
    error = graph.nodes.where("error")
    assert float(graph.nodes.value[error].max()) < 1e-3, "neurons miss nothing"


def test_run_gives_a_graph_that_names_what_it_came_from(
    finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "g.acg"
    assert main(["attribute", str(finished.folder.path), "--input", TEXT, "--check", "6", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "bookkeeping exact" in said
    assert "edges against live interventions" in said
    graph = Graph.open(out)
    assert graph.card.run == str(finished.folder.path)
    assert isinstance(graph.card.live.slope, Measured)
    assert graph.card.tokens[1:3] == ["def", " area"] or "".join(graph.card.tokens[1:]) == TEXT
    assert main(["attribute", str(finished.folder.path), "--input", TEXT, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--input", ""], "empty"),
        (["--input", "@9999999"], "held-out sequences"),
        (["--input", "@x"], "@N names"),
        (["--input", TEXT, "--target", "two tokens here"], "name one token"),
        (["--input", TEXT, "--target", "mlp.9/3"], "not a known dictionary of this graph"),
        (["--input", TEXT, "--target", "#99999999"], "the network has"),
        (["--input", TEXT, "--at", "500"], "the output has"),
        (["--input", "x = 1\n" * 2000], "more than the"),
    ],
)
def test_bad_questions(
    finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["attribute", str(finished.folder.path), *given, "--out", str(tmp_path / "g.acg")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "g.acg").exists()


def test_without_run_or_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", "--input", TEXT, "--out", str(tmp_path / "g.acg")]) == 2
    assert "--network demo" in capsys.readouterr().err
