"""The exam's marks, on dictionaries whose mark is known; and the commands that make and list organisms."""

import json

import pytest
import torch

from understudy.cli.commands import organism as organism_command
from understudy.cli.commands import organisms as organisms_command
from understudy.core.records.errors import BadData, BadFolder, UnknownName
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT
from understudy.networks import open_network
from understudy.organisms import ORGANISMS, make_organism
from understudy.organisms._planted import ACT
from understudy.organisms.two_codes import _code
from understudy.workflows._exam.features import _Target
from understudy.workflows.exam import Exam, ExamConfig, _chosen, _lost
from understudy.workflows.organisms import OrganismConfig, OrganismsConfig, list_organisms, write_organism


def everything(vectors):
    return torch.ones(len(vectors), dtype=torch.bool)


@pytest.fixture(scope="module")
def synthetic():
    return make_organism("synthetic")


def test_the_truth_scores_one_and_random_directions_nothing(synthetic):
    target = _Target(synthetic, ACT, 0)
    true = synthetic.truth.directions(ACT)
    row = target.row("synthetic", "truth", ACT, -3 * true, everything(true))
    assert row.truth_recovered.value == pytest.approx(1, abs=1e-4)
    assert row.precision.value == 1
    assert {band: round(m.value, 3) for band, m in row.by_frequency.items()} == {"rare": 1, "middle": 1, "frequent": 1}
    vectors = torch.randn(true.shape, generator=torch.Generator().manual_seed(7))
    row = target.row("synthetic", "random", ACT, vectors, everything(vectors))
    assert abs(row.truth_recovered.value) < 0.05
    assert row.precision.value < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_small_seeds_of_a_method_do_not_start_at_the_truth(synthetic, seed):
    """An organism draws from random numbers of its own: once, both were `randn(n, d)` of seed 0."""
    true = synthetic.truth.directions(ACT)
    vectors = torch.randn(true.shape, generator=torch.Generator().manual_seed(seed))
    row = _Target(synthetic, ACT, 0).row("synthetic", "untrained", ACT, vectors, everything(vectors))
    assert abs(row.truth_recovered.value) < 0.05


def test_half_of_the_truth_scores_between_and_dead_latents_do_not_count(synthetic):
    target = _Target(synthetic, ACT, 0)
    true = synthetic.truth.directions(ACT)
    alive = torch.arange(len(true)) % 2 == 0
    row = target.row("synthetic", "half", ACT, true, alive)
    assert 0.3 < row.truth_recovered.value < 0.8
    assert row.alive == int(alive.sum())
    none = target.row("synthetic", "none", ACT, true, torch.zeros(len(true), dtype=torch.bool))
    assert not isinstance(none.truth_recovered, Measured)


def test_a_plane_may_be_found_at_any_angle(synthetic):
    target = _Target(synthetic, ACT, 0)
    names = [f.name for f in synthetic.truth.at(ACT)]
    i, j = names.index("circle.cos"), names.index("circle.sin")
    true = synthetic.truth.directions(ACT)
    basis, _ = torch.linalg.qr(true[[i, j]].T)
    best, _ = target.nearest((basis @ torch.tensor([0.6, 0.8]))[None])
    assert float(best[i]) == pytest.approx(1, abs=1e-5)
    assert float(best[j]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 3])
def test_codes_are_told_apart_at_every_seed(seed):
    world = make_organism("two_codes", seed)
    target = _Target(world, ACT, seed)
    marks = [target.row("two_codes", c, ACT, v := _code(c, seed), everything(v)).truth_recovered.value for c in "AB"]
    assert marks == [pytest.approx(1), pytest.approx(-1)]


def test_papers_are_chosen_by_name():
    assert set(_chosen(ExamConfig(names="sort, two_codes"))) == {"sort", "two_codes"}
    assert set(_chosen(ExamConfig(preset="full"))) <= set(ORGANISMS)
    assert set(_chosen(ExamConfig(about="graphs"))) == set(ORGANISMS)
    with pytest.raises(UnknownName, match="two_codes"):
        _chosen(ExamConfig(names="two_code"))
    with pytest.raises(UnknownName, match="organism of `backdoor`"):
        _chosen(ExamConfig(about="backdoor", names="sort"))


def exam_of(row, seed=0):
    return Exam(about="features", preset="quick", seed=seed, rows=[row], wall_s=1.0)


def test_a_lost_mark_is_said(synthetic, tmp_path):
    target = _Target(synthetic, ACT, 0)
    true = synthetic.truth.directions(ACT)
    good = target.row("synthetic", "sae", ACT, true, everything(true))
    bad = target.row("synthetic", "sae", ACT, true.flip(1), everything(true))
    history = tmp_path / "exams.jsonl"
    assert _lost(history, exam_of(bad)) == []
    history.write_text(exam_of(good).model_dump_json() + "\n")
    assert _lost(history, exam_of(good)) == []
    assert [text.rsplit(":", 1)[0] for text in _lost(history, exam_of(bad))] == ["synthetic, sae at embed:out"]
    assert _lost(history, exam_of(bad, seed=1)) == [], "another seed is another exam"
    history.write_text("a note\n")
    with pytest.raises(BadData, match="line 1"):
        _lost(history, exam_of(good))


def test_an_organism_is_written_and_opens_as_a_network(tmp_path, monkeypatch):
    out = tmp_path / "sort"
    data, text = organism_command.run(OrganismConfig(name="sort", out=out), SILENT)
    assert data["healthy"]
    assert "py:network:sort" in text
    truth = json.loads((out / "truth.json").read_text())
    assert {e["target"] for e in truth["edges"]} <= {f["name"] for f in truth["features"]}
    assert json.loads((out / "card.json").read_text())["checks"][0]["passed"]
    monkeypatch.chdir(out)
    network = open_network("py:network:sort")
    assert network.name == "sort"
    with pytest.raises(BadFolder):
        write_organism(OrganismConfig(name="sort", out=out))


def test_the_list_has_every_organism_and_checks_on_request():
    data, _ = organisms_command.run(OrganismsConfig(), SILENT)
    assert [row["name"] for row in data["organisms"]] == list(ORGANISMS)
    (row,) = list_organisms(OrganismsConfig(names="histogram", check=True))
    assert all(c["passed"] for c in (*row["checks"], *row["twin_checks"]))
    with pytest.raises(UnknownName, match="histogram"):
        list_organisms(OrganismsConfig(names="histogramm"))
