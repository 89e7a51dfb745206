"""The tables of the guide are what the command measured."""

import importlib.util
from pathlib import Path

import pytest

from understudy.core.records.transfer import Transfer

ROOT = Path(__file__).parents[3]
MADE = Transfer.model_validate_json((ROOT / "benchmarks" / "results" / "transfer.json").read_text())


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_of_transfer", ROOT / "recipes" / "transfer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_guide_are_measured(recipe):
    lines = (ROOT / "docs" / "guide" / "transfer.md").read_text().splitlines()
    assert MADE.rows
    assert [line for line in lines if line.startswith("| `")] == [
        recipe.line(row) for claim in MADE.claims for row in MADE.of(claim.name)
    ]
