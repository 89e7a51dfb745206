"""Graphs whose making is stopped: killed, interrupted, asked for something else."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from understudy.cli.main import main
from understudy.core.records.progress import Progress, Task
from understudy.workflows.attribute import AttributeConfig, attribute

ASKED = {"network": "demo", "sites": "mlp.0,mlp.3", "input": "def area(r):\n    return", "nodes": 1500, "edges": 64}
FILES = ("rows.safetensors", "nodes.parquet", "graph.json")
pytestmark = pytest.mark.slow


def flags(out: Path, **more: object) -> list[str]:
    given = {**ASKED, "check": 0, "out": out, **more}
    return [word for k, v in given.items() for word in (f"--{k}", str(v))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "g.acg"
    attribute(AttributeConfig(**ASKED, check=0, out=out))
    return out


def same(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_killed_graph_carries_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.acg"
    code = f"import sys, torch; torch.set_num_threads({torch.get_num_threads()}); from understudy.cli.main import main"
    code += "; main(sys.argv[1:])"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "attribute", *flags(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    part, deadline = tmp_path / "g.acg.part", time.monotonic() + 120
    while len(list(part.glob("[0-9]*.safetensors"))) < 1 and time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()[0].decode()
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists(), "it was killed midway"
    made = {p.name: p.stat().st_mtime_ns for p in part.glob("*.safetensors")}
    said: list[str] = []
    attribute(AttributeConfig(**ASKED, check=0, out=out), Said(said))
    assert any(f"carrying on from {len(made)} blocks" in line for line in said), said
    assert not part.exists()
    same(out, whole)


class Said(Progress):
    """Remembers what is said; raises KeyboardInterrupt at an update of the rows, as Ctrl-C does."""

    def __init__(self, said: list[str], stop_at: int | None = None) -> None:
        self.said, self.stop_at = said, stop_at

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def task(self, what: str, total: float, unit: str = "") -> Iterator[Task]:
        yield _Stops(self.stop_at if what == "edges" else None)


class _Stops(Task):
    def __init__(self, at: int | None) -> None:
        self.left = at

    def update(self, done: float, note: str = "") -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def test_interrupted_graph_says_how_to_go_on_and_another_question_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, said = tmp_path / "g.acg", []
    with pytest.raises(KeyboardInterrupt):
        attribute(AttributeConfig(**ASKED, check=0, out=out), Said(said, stop_at=2))
    assert "the same command carries on" in said[-1]
    kept = {p.name: p.read_bytes() for p in (tmp_path / "g.acg.part").glob("*.safetensors")}
    assert len(kept) == 3
    for more, words in (
        ({"edges": 9}, "edges was 64, now 9"),
        ({"input": "import os"}, "input was 'def area(r):"),
        ({"seed": 3}, "seed was 0, now 3"),
    ):
        assert main(["attribute", *flags(out, **more), "--json"]) == 2
        answer = json.loads(capsys.readouterr().out)
        assert answer["error"] == "BadFolder"
        assert words in answer["message"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "g.acg.part").glob("*.safetensors")} == kept
    assert main(["attribute", *flags(out)]) == 0
    same(out, whole)


def test_damaged_rows_and_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, part = tmp_path / "g.acg", tmp_path / "g.acg.part"
    with pytest.raises(KeyboardInterrupt):
        attribute(AttributeConfig(**ASKED, check=0, out=out), Said([], stop_at=1))
    text = (part / "question.json").read_text()
    asked = json.loads(text)
    asked["question"]["network's weights"] = "0" * 16
    (part / "question.json").write_text(json.dumps(asked))
    assert main(["attribute", *flags(out)]) == 2
    assert "network's weights was" in capsys.readouterr().err
    (part / "question.json").write_text("{}")
    assert main(["attribute", *flags(out)]) == 2
    assert "was edited" in capsys.readouterr().err
    (part / "question.json").write_text(text)
    chunk = part / "targets.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert main(["attribute", *flags(out)]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_refused_questions_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "g.acg"
    assert main(["attribute", *flags(out, target="#99999999")]) == 2
    assert main(["attribute", *flags(out), "--max-memory", "0.001"]) == 1
    assert "more than --max-memory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
