"""Metrics in the viewers of others: what was logged is what their own readers find, after a kill too."""

import json
import time

import pytest

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder, BadInput, UnknownName
from understudy.workflows._following import writers
from understudy.workflows.follow import FollowConfig, follow

SITE = "model.layers.1.mlp:out"


def line(step: int, fvu: float) -> dict:
    return {"step": step, "places": 100 * step, "groups": {SITE: {"fvu": fvu, "l0": 4.0}}}


def folder(path, lines, finished=False) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    made = RunFolder(path)
    made.write_text("config.yaml", "k: 4\nsites: mlp.1\n")
    made.write_text("metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    if finished:
        made.write_json("groups.json", [])
    return made


class Written:
    """Stands where a viewer would: keeps what it is given, and from where on earlier entries no longer count."""

    def __init__(self, log, name, config, again_from=0) -> None:
        self.name, self.config, self.again_from = name, config, again_from
        self.got: list[tuple[int, dict]] = []
        self.is_open = True
        EVERY.append(self)

    def write(self, places, scalars) -> None:
        self.got.append((places, dict(scalars)))

    def close(self) -> None:
        self.is_open = False


EVERY: list[Written] = []


@pytest.fixture
def written(monkeypatch) -> list[Written]:
    EVERY.clear()
    monkeypatch.setitem(writers.WRITERS, "tensorboard", Written)
    return EVERY


def test_every_line_is_written_once_with_its_places(written, tmp_path):
    folder(tmp_path / "run", [line(20, 0.5), line(40, 0.4)])
    made = follow(FollowConfig(run=tmp_path / "run"))
    (one,) = written
    assert one.got == [(2000, {f"fvu/{SITE}": 0.5, f"l0/{SITE}": 4.0}), (4000, {f"fvu/{SITE}": 0.4, f"l0/{SITE}": 4.0})]
    assert one.config == {"k": 4, "sites": "mlp.1"}
    assert not one.is_open
    assert (made.lines, made.runs) == (2, 1)


def test_waiting_sees_a_run_to_its_end_and_takes_back_what_a_kill_took_back(written, tmp_path, monkeypatch):
    path = tmp_path / "run"
    states = [
        lambda: folder(path, [line(20, 0.5), line(40, 0.4), line(60, 0.3)]),
        lambda: folder(path, [line(20, 0.5)]),  # killed, and gone on from step 20
        lambda: folder(path, [line(20, 0.5), line(40, 0.41), line(60, 0.31), line(80, 0.2)], finished=True),
    ]
    states.pop(0)()
    monkeypatch.setattr("understudy.workflows.follow.time.sleep", lambda s: states.pop(0)())
    follow(FollowConfig(run=path, wait=True))
    assert [(w.again_from, [places for places, _ in w.got]) for w in written] == [
        (0, [2000, 4000, 6000]),
        (2001, [4000, 6000, 8000]),
    ]
    assert written[1].got[0][1][f"fvu/{SITE}"] == 0.41


def test_the_cells_of_a_grid_are_shown_beside_each_other(written, tmp_path):
    folder(tmp_path / "grid", [])
    for name in ("topk-8", "relu-1"):
        folder(tmp_path / "grid" / "cells" / name, [line(20, 0.5)])
    assert follow(FollowConfig(run=tmp_path / "grid")).runs == 2
    assert {w.name for w in written} == {"topk-8", "relu-1"}


def test_what_is_no_run_or_no_viewer_is_refused(tmp_path):
    with pytest.raises(BadFolder, match="there is no run"):
        follow(FollowConfig(run=tmp_path / "none"))
    folder(tmp_path / "scored", [], finished=True).file("metrics.jsonl").unlink()
    with pytest.raises(BadFolder, match="not trained there"):
        follow(FollowConfig(run=tmp_path / "scored"))
    with pytest.raises(UnknownName, match="tensorboard"):
        follow(FollowConfig(run=tmp_path / "scored", to="tensorbord"))


@pytest.mark.parametrize("to", ["tensorboard", "wandb"])
def test_a_viewer_that_is_not_installed_is_named_with_its_extra(to, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    folder(tmp_path / "run", [])
    with pytest.raises(BadInput, match=rf"pip install \"understudy\[{to}\]\""):
        follow(FollowConfig(run=tmp_path / "run", to=to))


def test_tensorboards_own_reader_finds_the_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="an extra: pip install understudy[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "run"
    folder(path, [line(20, 0.5), line(40, 0.4), line(60, 0.3)])
    follow(FollowConfig(run=path))
    folder(path, [line(20, 0.5), line(40, 0.45)])
    follow(FollowConfig(run=path))  # begins again from the start: nothing of before counts
    found = EventAccumulator(str(path / "log" / "run")).Reload()
    assert [(e.step, round(e.value, 6)) for e in found.Scalars(f"fvu/{SITE}")] == [(2000, 0.5), (4000, 0.45)]
    assert set(found.Tags()["scalars"]) == {f"fvu/{SITE}", f"l0/{SITE}"}


def test_weights_and_biases_keeps_the_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="an extra: pip install understudy[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "run"
    folder(path, [line(20, 0.5), line(40, 0.4)])
    assert follow(FollowConfig(run=path, to="wandb")).lines == 2
    (kept,) = (path / "log" / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(200):  # its own process writes the file, a moment after the run is closed
        if SITE.encode() in kept.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError("nothing was written in 20 seconds")
