"""The page of a curve: whole, safe, and honest where nothing was measured."""

import pytest

from tests.web.reports import HOSTILE
from tests.web.test_page import Document
from understudy.core.records.expressed import Expressed, Expressions
from understudy.core.records.graph_curve import SELECTIONS, GraphCurve, Size
from understudy.core.records.metric import Measured, NotMeasured
from understudy.web.curve import render

NO = NotMeasured(not_measured="not here")


def nats(value: float) -> Measured:
    return Measured(value=value, low=value - 0.1, high=value + 0.1, unit="nats", n=9)


def size(selection: str, nodes: int, loss: float, measured: bool = True) -> Size:
    m = nats(loss) if measured else NO
    return Size(
        selection=selection, nodes=nodes, l0=nats(3), loss=m, delta_loss=m, kl=nats(loss), top1_agreement=nats(0.5),
        kept=nats(0.5), kept_beyond_linear=NO, against_graph=nats(1.0) if measured and selection != "graph" else NO,
    )  # fmt: skip


def curve(measured: bool = True, name: str = "runs/x") -> GraphCurve:
    rows = [size(s, n, 5 / n + i, measured) for i, s in enumerate(SELECTIONS) for n in (10, 100, 1000)]
    return GraphCurve(
        source=name, network="demo", data=name, ranked_by="influence", dropped="zero", score="the loss", places=10,
        sequences=9, units=9, loss_clean=nats(1) if measured else NO, everything=size("graph", 4096, 0.3, measured),
        nothing=size("graph", 0, 7, measured), sizes=rows, enough={"graph": nats(321)} if measured else {},
        enough_beyond_linear={"graph": NO} if measured else {}, notes={"x": name},
    )  # fmt: skip


@pytest.mark.parametrize("measured", [True, False])
def test_the_page_shows_every_graph_and_loads_nothing(measured):
    page = render(curve(measured))
    Document(page)
    for nodes in ("10", "100", "1,000", "4,096"):
        assert f">{nodes}<" in page
    assert page.count("<polyline") == (12 if measured else 8)
    assert ("not measured" in page) is True
    assert "src=" not in page
    assert ("321" in page) is measured


def expressions(measured: bool) -> Expressions:
    m = nats(0.5) if measured else NO
    row = {"error": nats(2), "in_place": m, "kl": m, "kl_in_place": m, "r2": m, "rank": m, "r2_linear": m}
    rows = [
        Expressed(selection=s, nodes=n, r2_in_place=m, than_linear=m, **row)
        for s in ("graph", "random")
        for n in (9, 80)
    ]
    return Expressions(edits=64, whole_error=0.0, mass=m, rows=rows)


@pytest.mark.parametrize("measured", [True, False])
def test_expressions_stand_on_the_page_where_they_were_asked_for(measured):
    asked = curve().model_copy(update={"expression": expressions(measured)})
    page = render(asked)
    Document(page)
    assert "As expressions" in page
    assert page.count("<polyline") == (12 + 6 if measured else 12)
    assert ("No KL: not here" in page) is not measured
    assert ("no KL: not here" in str(asked)) is not measured
    assert "As expressions" not in render(curve())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    page = render(curve(name=name))
    Document(page)
    assert "alert" not in name or "<" not in name or name not in page


def test_the_text_names_the_verdict_of_each_rival():
    text = str(curve())
    assert text.count("worse") == 9
    assert "321" in text
    assert "loss of the network itself" not in str(curve(measured=False))
