"""Figures by the columns of the user's data: known losses land in their slices, and shuffled labels tell nothing."""

import json
import random

import pytest
import torch

from understudy.core.records.errors import BadData, UnknownName
from understudy.core.records.progress import Progress
from understudy.core.records.scorecard import Scorecard
from understudy.core.records.summary import summary
from understudy.web.sections.places import places
from understudy.workflows._data import open_sequences
from understudy.workflows._judging.labels import columns
from understudy.workflows.evaluate import EvaluateConfig, evaluate, open_run

N_DOCUMENTS, LENGTH, SEQUENCES = 300, 400, 24


@pytest.fixture(scope="module")
def labelled(text, tmp_path_factory) -> str:
    """Python source and noise, said by `language`; `letters` labels each character by a coin."""
    rng, source = random.Random(0), "".join(p.read_text() for p in sorted(text.glob("*.py")))
    lines = []
    for number in range(N_DOCUMENTS):
        start = rng.randrange(len(source) - LENGTH)
        noise = "".join(rng.choice("bcdfghjklmnpqrstvwxz#@%&") for _ in range(LENGTH))
        row = {"text": noise if number % 2 else source[start : start + LENGTH], "id": number}
        row["language"] = "noise" if number % 2 else "python"
        row["letters"] = [[i, i + 1, rng.choice("ab")] for i in range(LENGTH)]
        lines.append(json.dumps(row))
    path = tmp_path_factory.mktemp("labelled") / "x.jsonl"
    path.write_text("\n".join(lines))
    return f"text:{path}"


@pytest.fixture(scope="module")
def judged(finished, labelled) -> Scorecard:
    before = finished.folder.file("scorecard.json")
    stood = before.read_bytes() if before.exists() else None
    values = {"run": finished.folder.path, "data": labelled, "sequences": SEQUENCES, "rollouts": 0}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("understudy.workflows._judging.arms.FIT_PLACES", 1024)
        card = evaluate(EvaluateConfig(**values, slice_by="language, letters"))
    assert (before.read_bytes() if before.exists() else None) == stood, "the card of the run's own data is left alone"
    [written] = finished.folder.path.glob("scorecard.text-*.json")
    assert Scorecard.model_validate_json(written.read_text()) == card
    return card


@pytest.fixture(scope="module")
def by_hand(finished, labelled, judged) -> dict[str, torch.Tensor]:
    """Losses of the network at the scored places of all held-out rows, by the letter and the language they predict."""
    network = finished.network
    packed = open_sequences(network, labelled, "held_out", finished.config.context)
    from understudy.data import Order, column

    picked = Order(len(packed), 0).stream(0, SEQUENCES)
    batch = packed.batch(picked)
    with torch.no_grad():
        loss = network.loss(network(batch), batch)
    scored = batch.targets != -100
    out = {"all": loss[scored]}
    for name in ("language", "letters"):
        found = column(packed, name, "x")
        for code, value in enumerate(found.values):
            out[f"{name}/{value}"] = loss[scored & (found.codes[picked] == code)]
    return out


def test_every_slice_holds_the_loss_of_its_places(judged, by_hand):
    assert {(s.column, s.name) for s in judged.slices} == {
        ("language", "python"), ("language", "noise"), ("letters", "a"), ("letters", "b"),
    }  # fmt: skip
    for s in judged.slices:
        known = by_hand[f"{s.column}/{s.name}"]
        assert s.loss_clean.value == pytest.approx(known.double().mean().item(), abs=1e-5)
        assert s.share == pytest.approx(len(known) / len(by_hand["all"]), abs=1e-9)
    of_language = [s for s in judged.slices if s.column == "language"]
    assert sum(s.share for s in of_language) == pytest.approx(1)
    whole = sum(s.share * s.delta_loss.value for s in of_language)
    assert whole == pytest.approx(judged.replacement.delta_loss.value, abs=1e-9)


def test_a_label_that_matters_differs_and_a_coin_does_not(judged, by_hand):
    losses = by_hand["all"].double()
    whole, spread = losses.mean().item(), losses.std().item()
    for s in judged.slices:
        error = spread / (s.share * len(losses)) ** 0.5
        away = abs(s.loss_clean.value - whole) / error
        assert away > 10 if s.column == "language" else away < 3, s
    named = {s.name: s for s in judged.slices}
    assert named["python"].loss_clean.high < named["noise"].loss_clean.low


def test_the_text_and_the_page_name_the_column(judged):
    said = summary(judged)
    assert "language  " in said
    assert "kind of token" not in said
    page = str(places(judged))
    assert "by language" in page
    assert "by letters" in page


def test_columns_that_are_not_there(finished, labelled):
    network, silent = finished.network, Progress()
    packed = open_sequences(network, labelled, "held_out", 64)
    picked = torch.arange(len(packed))

    def ask(*names: str):
        return columns(network, labelled, packed, names, picked, silent)

    with pytest.raises(UnknownName, match=r"'langauge' is not a known column of text:.*Did you mean language\?"):
        ask("langauge")
    with pytest.raises(UnknownName, match="holds no Python files"):
        ask("kind")
    with pytest.raises(BadData, match="have no columns to slice by"):
        columns(network, labelled, object(), ["language"], picked, silent)


def test_too_many_values_are_said(finished, labelled, monkeypatch):
    said = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr("understudy.data.labels.Column.largest.__defaults__", (5,))
    packed = open_sequences(finished.network, labelled, "held_out", 64)
    [found] = columns(finished.network, labelled, packed, ["id"], torch.arange(len(packed)), progress)
    assert len(found.values) == 6
    assert found.values[-1].startswith("other (")
    assert said
    assert found.values[-1] in said[0]


def test_a_part_of_a_run_has_an_address(finished):
    run = open_run(f"{finished.folder.path}:mlp.1")
    assert [str(s) for g in run.groups for s in g.writes] == ["model.layers.1.mlp:out"]
    assert run.file_name("scorecard.json") == "scorecard.mlp.1.json"
    assert len(open_run(f"{finished.folder.path}:mlp.1,model.layers.2.mlp:out").groups) == 2
    with pytest.raises(UnknownName, match=r"'mlp\.11' is not a known site"):
        open_run(f"{finished.folder.path}:mlp.11")
    with pytest.raises(UnknownName, match=r"'resid\.1' is not a known written site of this run"):
        open_run(f"{finished.folder.path}:resid.1")


def test_a_part_is_judged_alone(finished, monkeypatch):
    monkeypatch.setattr("understudy.workflows._judging.arms.FIT_PLACES", 1024)
    whole = finished.folder.file("scorecard.json")
    stood = whole.read_bytes() if whole.exists() else None
    card = evaluate(EvaluateConfig(run=f"{finished.folder.path}:mlp.1", sequences=4, rollouts=0))
    assert card.replaced.modules == ["model.layers.1.mlp"]
    assert list(card.thresholds) == ["model.layers.1.mlp:out"]
    assert finished.folder.file("scorecard.mlp.1.json").exists()
    assert (whole.read_bytes() if whole.exists() else None) == stood
