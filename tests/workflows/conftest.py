"""A little real text, and a run small enough for seconds."""

import inspect
import json
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from understudy.workflows.train import TrainConfig

SOURCES = ("argparse", "ast", "calendar", "cmd", "configparser", "csv", "dataclasses", "difflib", "fractions", "heapq")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A folder of Python source: modules of the standard library on this machine."""
    folder = tmp_path_factory.mktemp("text")
    for name in SOURCES:
        module: types.ModuleType = __import__(name)
        (folder / f"{name}.py").write_text(inspect.getsource(module))
    return folder


@pytest.fixture
def small(text, tmp_path) -> dict[str, Any]:
    """Values of a TrainConfig that trains in about two seconds."""
    return {
        "network": "demo", "sites": "mlp.1,mlp.2", "n_latents": 64, "k": 4, "tokens": 20_000, "data": f"text:{text}",
        "context": 32, "batch": 256, "out": tmp_path / "run",
    }  # fmt: skip


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory):
    """One finished run for the tests that only read."""
    from understudy.workflows.train import train

    out = tmp_path_factory.mktemp("runs") / "finished"
    values = {"sites": "mlp", "n_latents": 128, "k": 8, "tokens": 60_000, "context": 64, "batch": 512}
    return train(TrainConfig(**values, data=f"text:{text}", out=out))


def described(value: Any) -> str:
    return textwrap.shorten(json.dumps(value, default=str), 200)
