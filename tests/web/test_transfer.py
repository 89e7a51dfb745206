"""The page of claims: whole, safe, and honest where nothing was measured."""

import pytest

from tests.core.records.test_transfer import NO, row
from tests.web.reports import HOSTILE
from tests.web.test_page import Document
from understudy.core.records.transfer import ClaimCard, Transfer
from understudy.web.transfer import render


def made(measured: bool = True, name: str = "demo") -> Transfer:
    card = ClaimCard(name="absorption", sentence=name, defect="absorption", definition=name, unit="fraction",
                     source=name, control=name, arms=["plain", "better"])  # fmt: skip
    rows = [row(network=name, site=name), row(network="other", removed=0.1, notes=[name])]
    if not measured:
        rows = [
            r.model_copy(
                update={"removed": NO, "arms": [a.model_copy(update={"defect": NO, "control": NO}) for a in r.arms]}
            )
            for r in rows
        ]
    return Transfer(claims=[card], rows=rows, l0=8, width=4, places=9, seeds=3)


@pytest.mark.parametrize("measured", [True, False])
def test_the_page_shows_every_network_and_loads_nothing(measured):
    page = render(made(measured))
    Document(page)
    assert "src=" not in page
    assert (page.count('class="dot-row is-') == 4) is measured
    for verdict in ("holds", "does not") if measured else ("not measured",):
        assert verdict in page
    assert ("not here" in page) is not measured


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    page = render(made(name=name))
    Document(page)
    assert "alert" not in name or "<" not in name or name not in page
