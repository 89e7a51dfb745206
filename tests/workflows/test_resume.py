"""Killed at any moment, mid-checkpoint too, a resumed run ends in the same weights, optimiser and batches."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder, BadInput, BadWeights
from understudy.core.records.progress import Progress
from understudy.core.weights import load_tensors
from understudy.workflows import train as training
from understudy.workflows.train import TrainConfig, train

KILLS = 20


def _train(values: dict) -> None:
    torch.set_num_threads(1)  # two run side by side: with a thread each for every core they would wait on each other
    train(TrainConfig(**values))


def _digest(path: Path) -> str:
    tensors = load_tensors(path)
    joined = b"".join(name.encode() + tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(joined).hexdigest()


def state(out: Path) -> dict[str, str]:
    """Hashes of everything a run ends with: dictionaries, and weights, optimiser and position of its checkpoint."""
    last = out / "checkpoints" / str(RunFolder(out).checkpoints()[-1])
    found = {p.name: _digest(p) for p in (out / "weights.safetensors", *sorted(last.glob("*.safetensors")))}
    return found | {"position": (last / "state.json").read_text(), "step": last.name}


@pytest.fixture(scope="module")
def processes():
    """Real processes that start at once: the library is imported in the server they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["understudy.workflows.train", "transformers"])
    return context


def test_a_run_killed_twenty_times_ends_as_one_that_never_was(small, processes, tmp_path):
    values = {**small, "tokens": 60_000, "checkpoint_s": 0.0}
    whole = {**values, "out": tmp_path / "whole"}
    child = processes.Process(target=_train, args=(whole,))
    child.start()
    child.join()
    assert child.exitcode == 0
    n_lines = len(RunFolder(tmp_path / "whole").metrics())
    rng, killed, resume, reached = random.Random(0), 0, False, set()
    while killed < KILLS:
        child = processes.Process(target=_train, args=({**values, "resume": resume},))
        child.start()
        wanted = min(n_lines - 1, int((killed + 1) * n_lines / (KILLS + 2)))
        _wait_for_line(values["out"], wanted, child)
        time.sleep(rng.random() * 0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        killed, resume = killed + 1, (values["out"] / "config.yaml").exists()
        reached.add(len(RunFolder(values["out"]).metrics()))
    assert len(reached) > KILLS // 3, "the kills all fell on one place"
    # In a process like the others: bits are promised for the same number of threads, and this one has its own.
    child = processes.Process(target=_train, args=({**values, "resume": True},))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert state(values["out"]) == state(tmp_path / "whole")
    mine, other = (RunFolder(p).metrics() for p in (values["out"], tmp_path / "whole"))
    assert mine == other


OTHERS = {
    "crosscoder jumprelu matryoshka": {"kind": "crosscoder", "sites": "resid.*", "sparsity": "jumprelu",
                                       "objective": "matryoshka"},
    "skip transcoder gated resampled": {"kind": "skip_transcoder", "sparsity": "gated", "dead": "resample",
                                        "dead_after": 2_000},
    "clt batch_topk averaged": {"kind": "clt", "sparsity": "batch_topk", "ema": 0.9},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("more", OTHERS.values(), ids=OTHERS)
def test_other_kinds_and_rules_killed_once_end_as_if_they_never_were(small, processes, tmp_path, more):
    """What each carries from step to step besides weights: thresholds with moments of their own, mean cuts, revived
    latents, averages. All of it must be in the checkpoint."""
    values = {**small, **more, "k": 8 if more["kind"] == "crosscoder" else 4, "tokens": 15_000, "checkpoint_s": 0.0}
    whole = {**values, "out": tmp_path / "whole"}
    children = [processes.Process(target=_train, args=(v,)) for v in (whole, values)]
    for child in children:
        child.start()
    _wait_for_line(values["out"], 1, children[1])
    os.kill(children[1].pid, signal.SIGKILL)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, -signal.SIGKILL]
    assert len(RunFolder(values["out"]).metrics()) < len(RunFolder(tmp_path / "whole").metrics())
    child = processes.Process(target=_train, args=({**values, "resume": True},))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert state(values["out"]) == state(tmp_path / "whole")
    assert RunFolder(values["out"]).metrics() == RunFolder(tmp_path / "whole").metrics()


def _wait_for_line(out: Path, wanted: int, child) -> None:
    for _ in range(60_000):
        if len(RunFolder(out).metrics()) >= wanted and (wanted or (out / "checkpoints").exists()):
            return
        assert child.is_alive(), "the run ended before it was killed"
        time.sleep(0.01)
    raise AssertionError("the run made no progress in ten minutes")


def test_a_checkpoint_folder_that_was_never_renamed_is_ignored(small):
    train(TrainConfig(**{**small, "checkpoint_s": 0.0}))
    before = state(small["out"])
    half = small["out"] / "checkpoints" / ".999.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (small["out"] / "groups.json").unlink()
    train(TrainConfig(**{**small, "checkpoint_s": 0.0, "resume": True}))
    assert state(small["out"]) == before


def test_resuming_with_other_values_is_refused_and_says_which(small):
    train(TrainConfig(**small))
    with pytest.raises(BadInput, match=r"k: 4 -> 5.*may differ"):
        train(TrainConfig(**{**small, "k": 5, "resume": True}))
    done = train(TrainConfig(**{**small, "resume": True}))
    assert len(done.groups) == 2


def test_a_folder_in_use_is_refused_before_anything_is_read(small):
    small["out"].mkdir()
    (small["out"] / "notes.txt").write_text("mine")
    with pytest.raises(BadFolder, match=r"not empty.*another --out"):
        train(TrainConfig(**small))
    assert [p.name for p in small["out"].iterdir()] == ["notes.txt"]


def test_resuming_what_was_never_started_is_refused(small):
    with pytest.raises(BadFolder, match="there is no run"):
        train(TrainConfig(**{**small, "resume": True}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_continue(small, processes, number):
    values = {**small, "tokens": 200_000, "checkpoint_s": 1000.0}
    child = processes.Process(target=_train, args=(values,))
    child.start()
    _wait_for_line(values["out"], 2, child)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 1  # KeyboardInterrupt, as the command line turns into 130
    saved = json.loads(next((values["out"] / "checkpoints").glob("[0-9]*/state.json")).read_text())
    assert 0 < saved["places"] < 200_000


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def two_checkpoints(small):
    """A run that was stopped, with its checkpoints; what it would have ended in; how to continue it."""
    values = {**small, "checkpoint_s": 0.0}
    train(TrainConfig(**values))
    before = state(small["out"])
    (small["out"] / "groups.json").unlink()
    older, newest = (small["out"] / "checkpoints" / str(s) for s in RunFolder(small["out"]).checkpoints())
    return before, older, newest, {**values, "resume": True}


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimiser.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before_and_says_so(two_checkpoints, name, damage):
    before, _, newest, values = two_checkpoints
    whole = (newest / name).read_bytes()
    (newest / name).unlink() if damage == "missing" else (newest / name).write_bytes(whole[: len(whole) // 2])
    said = Said()
    train(TrainConfig(**values), said)
    assert any(f"step {newest.name} cannot be used" in line for line in said.lines)
    assert any("resuming at step" in line for line in said.lines)
    assert state(values["out"]) == before


def test_a_run_without_any_whole_checkpoint_is_refused_not_started_again(two_checkpoints):
    _, older, newest, values = two_checkpoints
    for folder in (older, newest):
        (folder / "state.json").unlink()
    with pytest.raises(BadWeights, match=r"no checkpoint of .* is whole.*state\.json.*Remove .*checkpoints"):
        train(TrainConfig(**values))
    assert older.exists()
    assert newest.exists()


def test_a_value_given_on_resume_counts_even_where_it_is_the_default(small):
    train(TrainConfig(**small))
    with pytest.raises(BadInput, match="k: 4 -> 16"):
        train(TrainConfig(k=16, out=small["out"], resume=True))
    assert train(TrainConfig(out=small["out"], resume=True)).config.k == 4


def test_every_session_keeps_its_provenance(two_checkpoints):
    *_, values = two_checkpoints
    folder = RunFolder(values["out"])
    first = folder.read_json("sessions.json")
    assert [s["from_step"] for s in first] == [0]
    train(TrainConfig(**values))
    sessions = folder.read_json("sessions.json")
    assert sessions[:1] == first
    assert len(sessions) == 2
    assert sessions[1]["from_step"] > 0
    newest = folder.read_json("provenance.json")
    assert all(isinstance(v, str) for v in newest.values())
    assert {k: v for k, v in newest.items() if k in sessions[1]} == {
        k: v for k, v in sessions[1].items() if k != "from_step"
    }


def test_what_finishing_runs_into_does_not_lose_the_training(small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("understudy.workflows._training.finish._look", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(TrainConfig(**small))
    assert (small["out"] / "weights.safetensors").exists()
    assert not (small["out"] / "groups.json").exists()
    assert RunFolder(small["out"]).checkpoints()
    monkeypatch.setattr(training, "_guarded", lambda *args: pytest.fail("a finished loop must not train"))
    assert len(train(TrainConfig(out=small["out"], resume=True)).groups) == 2


def test_a_kill_before_the_first_file_is_no_dead_end(small):
    small["out"].mkdir()
    for name in (".writable", ".config.yaml.tmp", ".lock"):
        (small["out"] / name).write_text("")
    train(TrainConfig(**small))
    assert not (small["out"] / ".lock").exists()


def test_a_second_process_in_the_folder_is_refused(small):
    train(TrainConfig(**small))
    (small["out"] / "groups.json").unlink()
    with RunFolder(small["out"]).locked(), pytest.raises(BadFolder, match=r"another process has .*: training"):
        train(TrainConfig(**{**small, "resume": True}))
