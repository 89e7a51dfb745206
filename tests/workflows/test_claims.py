"""Explanations of others on the report: at the latents they are of, marked as claims, or refused."""

import json
import re

import pytest

from tests.formats import files
from tests.formats.test_neuronpedia import jsonl, row
from understudy.cli.main import main
from understudy.core.records.errors import BadData, BadInput, UnknownName
from understudy.core.records.scorecard import Report
from understudy.networks import open_network
from understudy.web.page import render
from understudy.workflows._scoring.claims import _model
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.score import score

N = 64
HOSTILE = "<script>alert(1)</script> </bdi> \u202egnp"


@pytest.fixture(scope="module")
def network():
    return open_network("demo")


@pytest.fixture(scope="module")
def scored(network, text, tmp_path_factory):
    """SAEs at two layers; the second says what Neuronpedia calls it, and belongs to a hook before its block."""
    root = tmp_path_factory.mktemp("claims")
    w = files.weights(192, N)
    files.saelens(root / "in" / "a", w, "blocks.1.hook_mlp_out", architecture="topk", k=8)
    more = {"architecture": "topk", "k": 8, "metadata": {"neuronpedia_id": "demo/3-res-x"}}
    files.saelens(root / "in" / "b", w, "blocks.3.hook_resid_pre", **more)
    more = {"data": f"text:{text}", "context": 32, "sequences": 4, "rollouts": 0, "fit_places": 200}
    score(network, root / "in", out=root / "scored", **more)
    return root / "scored"


def write(path, *rows):
    path.write_bytes(jsonl(*rows))
    return path


def claimed(found: Report) -> dict[tuple[str, int], list[str]]:
    return {(s, f.latent): [c.text for c in f.claims] for s, fs in found.features.items() for f in fs if f.claims}


def test_each_latent_gets_its_own_and_only_its_own(scored, tmp_path):
    """Text names the row it is from; the file is in another order, with two explanations for some."""
    mlp = [row(i, f"mlp {i}", "1-mlp-x", modelId="demo") for i in reversed(range(0, N, 2))]
    res = [row(i, f"res {i}", "3-res-x", modelId="demo", explanationModelName="o3") for i in range(0, N, 3)]
    path = write(tmp_path / "b.jsonl", *mlp, *res, row(4, "again", "1-mlp-x", modelId="demo"), row(1, "", "2-y"))
    found = report(ReportConfig(run=scored, features=N, sequences=8, explanations=path))
    shown = {(s, f.latent) for s, fs in found.features.items() for f in fs}
    wanted = {("model.layers.1.mlp:out", i): [f"mlp {i}"] + ["again"] * (i == 4) for i in range(0, N, 2)}
    wanted |= {("model.layers.2:out", i): [f"res {i}"] for i in range(0, N, 3)}
    assert claimed(found) == {key: texts for key, texts in wanted.items() if key in shown}
    assert len(claimed(found)) > 20
    (one,) = next(f for f in found.features["model.layers.2:out"] if f.claims).claims
    assert (one.explainer, one.method, one.source, one.file) == ("o3", "oai_token-act-pair", "demo/3-res-x", str(path))
    kept = json.loads((scored / "features.json").read_text())
    assert {f["latent"] for f in kept["model.layers.2:out"] if f["claims"]} <= set(range(0, N, 3))


def test_the_page_shows_them_as_claims_of_others_and_as_text(scored, tmp_path):
    rows = [row(i, f"{HOSTILE} {i}", "1-mlp-x", modelId="demo", explanationModelName="<b>gpt</b>") for i in range(N)]
    path = write(tmp_path / "b.jsonl", *rows)
    text = render(report(ReportConfig(run=scored, features=3, sequences=8, explanations=path)))
    assert "<script>alert" not in text
    assert "<b>gpt" not in text
    assert text.count("&lt;script&gt;alert(1)") == 6  # three latents: on the line, and inside
    assert text.count("Claimed by others, not measured here") == 3
    assert "⟨U+202E⟩" in text
    assert "&lt;b&gt;gpt&lt;/b&gt;, oai_token-act-pair · demo/1-mlp-x · " in text
    assert f"were written by others (<code>{path}</code>). Nothing here tests them." in text
    assert 'id="def-claim"' in text
    plain = render(report(ReportConfig(run=scored, features=3, sequences=8)))
    assert "Claimed by others" not in plain
    assert "written by others (" not in plain


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(1, layer="1-mlp-x", modelId="gemma-2-2b")], "of gemma-2-2b; the dictionaries here are on demo or some-"),
        ([row(1, layer="2-mlp-x", modelId="demo")], "explains 2-mlp-x; the dictionaries here are 3-res-x, layer 1"),
        ([row(N, layer="1-mlp-x", modelId="demo")], f"latent {N} of 1-mlp-x, but model.layers.1.mlp:out has {N}"),
        ([row(1, layer=s, modelId="demo") for s in ("1-a", "1-b")], "two dictionaries of layer 1, 1-a and 1-b"),
        ([row(1, layer="3-mlp-x", modelId="demo")], "explains 3-mlp-x"),
        ([], "explains nothing"),
    ],
)  # fmt: skip
def test_explanations_of_something_else_are_refused(network, scored, tmp_path, text, rows, says):
    path = write(tmp_path / "b.jsonl", *rows)
    with pytest.raises(BadInput, match=re.escape(says)):
        report(ReportConfig(run=scored, features=3, sequences=8, explanations=path))
    source = str(scored.parent / "in")
    with pytest.raises(BadInput, match=re.escape(says)):
        score(network, source, explanations=path, data=f"text:{text}", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_dictionaries_of_one_layer_are_not_chosen_between(network, tmp_path, text):
    w = files.weights(192, N)
    for hook in ("hook_mlp_out", "hook_resid_post"):
        files.saelens(tmp_path / "in" / hook, w, f"blocks.1.{hook}", architecture="topk", k=8)
    path = write(tmp_path / "b.jsonl", row(1, layer="1-mlp-x", modelId="demo"))
    with pytest.raises(BadInput, match=r"two dictionaries here belong to layer 1.*--sites model"):
        score(network, tmp_path / "in", explanations=path, data=f"text:{text}", out=tmp_path / "out")


def test_a_score_remembers_its_file_and_the_command_says_what_it_found(scored, text, tmp_path, capsys):
    path = write(tmp_path / "b.jsonl", *[row(i, f"mlp {i}", "1-mlp-x", modelId="demo") for i in range(N)])
    out = str(tmp_path / "out")
    args = ["--network", "demo", "--data", f"text:{text}", "--context", "32", "--sequences", "4", "--rollouts", "0"]
    args += ["--fit-places", "200", "--explanations", str(path), "--sites", "mlp_out.1", "--out", out, "--json"]
    assert main(["score", str(scored.parent / "in"), *args]) == 0
    capsys.readouterr()
    assert main(["report", out, "--features", "5", "--sequences", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["features"], said["claimed"]) == (5, 5)
    assert main(["report", out, "--explanations", str(tmp_path / "no.jsonl")]) == 2
    assert "there is no file of explanations" in capsys.readouterr().err


def test_what_cannot_be_read_is_said_before_anything_is_judged(network, scored, text, tmp_path):
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(BadData, match="truncated or corrupt"):
        score(
            network,
            str(scored.parent / "in"),
            explanations=tmp_path / "b.jsonl",
            data=f"text:{text}",
            out=tmp_path / "o",
        )
    assert not (tmp_path / "o").exists()
    with pytest.raises(UnknownName):
        report(ReportConfig(run=scored, explanations=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("openai-community/gpt2", "gpt2-small"), ("hf:google/gemma-2-2b", "gemma-2-2b"), ("demo", "demo"),
        ("meta-llama/Llama-3.1-8B", "llama3.1-8b"), ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1-8b-it"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"), ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
        ("meta-llama/Meta-Llama-3-8B", "llama3-8b"), ("Qwen/Qwen3-4B", "qwen3-4b"),
    ],
)  # fmt: skip
def test_networks_under_two_names_are_known_as_one(ours, theirs):
    assert _model(ours) == _model(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("google/gemma-2-2b", "gemma-2-9b"), ("google/gemma-2-2b-it", "gemma-2-2b"), ("gpt2-medium", "gpt2-small"),
        ("google/gemma-2-2b", "gemma-3-2b"),
    ],
)  # fmt: skip
def test_networks_that_differ_stay_apart(ours, theirs):
    assert _model(ours) != _model(theirs)
