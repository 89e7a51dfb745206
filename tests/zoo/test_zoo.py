"""Every architecture of the zoo passes every check, or refuses with the reason its case states."""

from pathlib import Path

import pytest

from .cases import CASES, Case, needs
from .checks import CHECKS, outcomes, row

TABLE = Path(__file__).parents[2] / "docs" / "zoo.md"
# transformers' own modules use torch functions that torch deprecates.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning:torch|transformers")]


def test_there_are_41():
    assert len(CASES) == len({case.name for case in CASES}) == 41


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_or_refuses_as_stated(case: Case):
    needs(case.since)
    found = outcomes(case)
    for name in CHECKS:
        expected = case.refuses.get(name, "yes")
        kind, _, reason = expected.partition(": ")
        assert found[name].startswith(kind), f"{name}: {found[name]}"
        assert reason in found[name]
    assert row(case, found) in TABLE.read_text(), "docs/zoo.md is out of date: python -m tests.zoo.table > docs/zoo.md"
