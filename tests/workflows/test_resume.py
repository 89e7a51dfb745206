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

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder, BadInput
from understudy.core.weights import load_tensors
from understudy.workflows.train import TrainConfig, train

KILLS = 20


def _train(values: dict) -> None:
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
    _train({**values, "resume": True})
    assert state(values["out"]) == state(tmp_path / "whole")
    mine, other = (RunFolder(p).metrics() for p in (values["out"], tmp_path / "whole"))
    assert mine == other


def _wait_for_line(out: Path, wanted: int, child) -> None:
    for _ in range(6000):
        if len(RunFolder(out).metrics()) >= wanted and (wanted or (out / "checkpoints").exists()):
            return
        assert child.is_alive(), "the run ended before it was killed"
        time.sleep(0.01)
    raise AssertionError("the run made no progress in a minute")


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


def test_ctrl_c_saves_and_says_how_to_continue(small, processes):
    values = {**small, "tokens": 200_000, "checkpoint_s": 1000.0}
    child = processes.Process(target=_train, args=(values,))
    child.start()
    _wait_for_line(values["out"], 2, child)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    assert child.exitcode == 1  # KeyboardInterrupt, as the command line turns into 130
    saved = json.loads(next((values["out"] / "checkpoints").glob("[0-9]*/state.json")).read_text())
    assert 0 < saved["places"] < 200_000
