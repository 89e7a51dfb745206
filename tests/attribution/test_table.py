"""docs/certificates.md says what graphs of these networks are."""

from pathlib import Path

import pytest

from tests.attribution.table import TRAINED, of_neurons, row
from tests.attribution.test_architectures import WANTED, local_pass

TABLE = Path(__file__).parents[2] / "docs" / "certificates.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| \n").split(" | ")]


ROWS = {cells(line)[0]: cells(line) for line in TABLE.read_text().splitlines() if " | yes | " in line}


def test_every_network_has_a_row_with_its_live_agreement_beside():
    assert list(ROWS) == [*(f"{name} ({about})" for name, about in WANTED.items()), *TRAINED]
    assert all("[" in cell for found in ROWS.values() for cell in found[6:9])


@pytest.mark.parametrize("name", [*WANTED, *TRAINED])
def test_a_network_is_as_its_row_says(name: str):
    shown = f"{name} ({WANTED[name]})" if name in WANTED else name
    local = local_pass(name) if name in WANTED else of_neurons(TRAINED[name]())
    found = cells(row(shown, local, checked=0))
    assert (found[1], found[5]) == (ROWS[shown][1], ROWS[shown][5])
    assert float(found[9]) < 1e-4, "everything kept, errors measured: an expression gives every value back"
