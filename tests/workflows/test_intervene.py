"""`understudy intervene`: on a run, on a graph with what it predicts, and what cannot be asked."""

import json
from pathlib import Path

import pytest
import torch

from understudy.cli.main import main
from understudy.core.graph import Graph
from understudy.workflows.attribute import AttributeConfig, attribute

TEXT = "def area(r):\n    return"


@pytest.fixture(scope="module")
def neurons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the last MLP's neurons: nothing lies between them and the output but a norm."""
    out = tmp_path_factory.mktemp("graphs") / "g.acg"
    attribute(AttributeConfig(network="demo", sites="mlp.3", input=TEXT, nodes=400, check=0, out=out))
    return out


def strongest(graph: Graph, n: int) -> list[str]:
    """Names of the latents with the largest edges into the first target."""
    target = int(graph.nodes.where("target").nonzero()[0])
    sources, weights = graph.rows.row(target)
    latents = graph.nodes.where("latent")[sources.long()]
    order = torch.where(latents, weights.abs(), -1.0).argsort(descending=True)[:n]
    return [graph.name(int(sources[i])) for i in order]


def asked(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict:
    assert main(["intervene", *args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_graph_says_what_its_edges_say(neurons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph.open(neurons)
    names = strongest(graph, 2)
    flags = [word for name in names for word in ("--set", f"{name}=0")]
    found = asked(capsys, str(neurons), *flags, "--controls", "4")
    assert found["occurrences"] == 2, "both flags count"
    assert found["divergence"]["value"] > 0
    first = found["targets"][0]
    target = int(graph.nodes.where("target").nonzero()[0])
    assert first["clean"]["value"] == pytest.approx(float(graph.nodes.value[target]), rel=1e-4)
    assert first["change"]["value"] == pytest.approx(first["changed"]["value"] - first["clean"]["value"], abs=1e-6)
    assert first["direct"]["value"] == pytest.approx(first["total"]["value"]), "no latent lies on the way"
    sources, weights = graph.rows.row(target)
    own = [weights[i] for i, j in enumerate(sources.tolist()) if graph.name(j) in names]
    assert first["direct"]["value"] == pytest.approx(-float(sum(own)), rel=1e-4)
    assert first["control"]["n"] == 4
    assert first["larger_controls"]["low"] < first["larger_controls"]["high"], "four draws leave doubt"
    assert first["control"]["low"] <= first["control"]["value"] <= first["control"]["high"]


def test_changing_nothing_is_nothing_and_silence_is_said(neurons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = strongest(Graph.open(neurons), 1)
    said = asked(capsys, str(neurons), "--set", f"{name}=x1", code=2)
    assert "changes nothing" in said["message"]
    nodes = Graph.open(neurons).nodes
    known = set(nodes.latent[nodes.where("latent") & (nodes.place == 3)].tolist())
    hidden = next(i for i in range(512) if i not in known)
    found = asked(capsys, str(neurons), "--set", f"mlp.3/{hidden}@3=2.5", "--controls", "1")
    assert "no node of the graph" in found["targets"][0]["direct"]["not_measured"]


def test_run_is_changed_while_it_goes_on(finished, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(finished.folder.path), "--input", TEXT, "--set", "mlp.1/3=4.0", "--controls", "2", "--generate", "5"]
    found = asked(capsys, *args)
    assert found["occurrences"] >= 1
    assert "a run has no edges" in found["targets"][0]["direct"]["not_measured"]
    assert 0 <= found["continued"]["same"]["value"] <= 1
    assert found["continued"]["same"]["n"] == 5
    assert found == asked(capsys, *args), "one seed, one answer"
    loud = asked(capsys, *[a if a != "mlp.1/3=4.0" else "mlp.1/3=400" for a in args])
    assert loud["divergence"]["value"] > found["divergence"]["value"]
    assert loud["continued"]["clean"] == found["continued"]["clean"]
    assert loud["continued"]["changed"] != loud["continued"]["clean"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to change"),
        (["--set", "mlp.3/4"], "LATENT=VALUE"),
        (["--set", "mlp.3=0"], "is not a latent"),
        (["--set", "mlp.3/4=much"], "neither a value"),
        (["--set", "mlp.9/4=0"], "not a known site"),
        (["--set", "mlp.3/99999=0"], "numbered 0 to 511"),
        (["--set", "mlp.3/4=0", "--set", "mlp.3/4=1"], "twice"),
        (["--set", "mlp.3/4=0", "--input", "x"], "leave --input"),
        (["--set", "mlp.3/4=0", "--generate", "9999"], "was made for"),
        (["--set", "mlp.3/4=0", "--controls", "0"], "greater than 0"),
    ],
)
def test_bad_questions(neurons: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert words in asked(capsys, str(neurons), *args, code=2)["message"]


def test_place_of_the_target_is_kept_in_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "early.acg"
    attribute(AttributeConfig(network="demo", sites="mlp.3", input=TEXT, at=2, nodes=50, check=0, out=out))
    graph = Graph.open(out)
    assert set(graph.nodes.place[graph.nodes.where("target")].tolist()) == {2}
    (name,) = strongest(graph, 1)
    found = asked(capsys, str(out), "--set", f"{name}=0", "--controls", "1")
    target = int(graph.nodes.where("target").nonzero()[0])
    assert found["targets"][0]["clean"]["value"] == pytest.approx(float(graph.nodes.value[target]), rel=1e-4)
