"""The pages of grids: whole, safe, and honest where nothing was measured."""

import pytest

from tests.web.reports import HOSTILE
from tests.web.test_page import Document
from understudy.core.records.frontier import FORMS, WHAT, AtL0, Frontier, Point, Rate
from understudy.core.records.metric import Measured, NotMeasured, exact
from understudy.core.records.scale import NAMES, BestRate, Cost, Prediction, ScaleCard
from understudy.web.frontier import render
from understudy.web.scale import render as render_scale

NO = NotMeasured(not_measured="not here")
RULES = ("topk", "relu", "mine.Rule")


def about(value: float, unit: str = "fraction", width: float = 0.01) -> Measured:
    return Measured(value=value, low=value - width, high=value + width, unit=unit, n=9)


def frontier(measured: bool = True, name: str = "demo") -> Frontier:
    points = [
        Point(run=f"{rule}-{l0}", form=form, rule=rule, level=l0, seed=seed, lr=1e-3, l0=about(l0, "latents"), dead=0.1,
              fvu=about(0.5 / l0**0.5 + i / 10) if measured else NO, delta_loss=NO)
        for i, rule in enumerate(RULES) for l0 in (8, 16) for seed in (0, 1) for form in FORMS
    ]  # fmt: skip
    gaps = {"topk": exact(0.0, "fraction", 9), "relu": about(0.1), "mine.Rule": about(0.005)}
    at = [
        AtL0(form=form, what=what, l0=l0, rule=rule, value=about(0.3 + i) if measured else NO,
             beyond_best=gaps[rule] if measured else NO, by_seed=[0.1, 0.1])
        for form in FORMS for what in WHAT for l0 in (8, 16) for i, rule in enumerate(RULES)
    ]  # fmt: skip
    rates = [Rate(rule=rule, losses={"1": 0.5, "2": None}, factor=1, is_edge=True) for rule in RULES]
    return Frontier(
        network=name, site=name, kind="sae", data=name, n_latents=64, places=10, sequences=9, units=9, seeds=2,
        rules=list(RULES), points=points, at=at, rates=rates, chord=about(0.02) if measured else NO, notes=[name],
    )  # fmt: skip


def scaled(measured: bool = True, name: str = "demo") -> ScaleCard:
    m = about(0.3) if measured else NO
    grid = [
        Cost(n_latents=n, k=k, lr=1e-3, l0=about(k, "latents"), fvu=about(0.3 + k / 100), left_out=m)
        for n in (64, 128, 256)
        for k in (4, 8)
    ]
    ahead = [
        Prediction(n_latents=512, k=k, lr=1e-3, l0=about(k), predicted=about(0.2), measured=about(0.21), off=m)
        for k in (4, 8)
    ]
    rates = [BestRate(n_latents=64, fvu={"0.001": about(0.3)}, best=m)]
    return ScaleCard(
        network=name, site=name, kind="sae", rule="topk", data=name, places=10, sequences=9, units=9, seeds=1,
        grid=grid, middle=(5.6, 128.0), law=dict.fromkeys(NAMES, m), left_out=m, rates=rates, rate_slope=m,
        next_rate=m, next_rate_measured=m, predictions=ahead, notes=[name],
    )  # fmt: skip


@pytest.mark.parametrize("measured", [True, False])
def test_the_frontier_shows_every_rule_and_loads_nothing(measured):
    page = render(frontier(measured))
    Document(page)
    assert "src=" not in page
    assert all(f">{rule}<" in page or f"{rule}-8" in page for rule in RULES)
    assert page.count("<polyline") == (12 if measured else 0)  # 3 rules, 2 seeds, 2 forms; the loss was not measured
    assert ("not told apart" in page) is measured
    assert "not measured" in page


def test_the_text_and_the_page_say_the_same_verdicts():
    card = frontier()
    said = "at an L0 of 8 topk is lowest; clearly above it relu; not told apart from it mine.Rule"
    assert said in str(card)
    assert said in render(card)
    assert "no rule was measured" not in str(card)
    assert max(map(len, str(card).splitlines())) <= 120


@pytest.mark.parametrize("measured", [True, False])
def test_the_page_of_a_law_shows_what_was_predicted(measured):
    page = render_scale(scaled(measured))
    Document(page)
    assert "src=" not in page
    assert page.count("<polyline") == 4  # for each k, what was measured and what was predicted
    assert (">512<" in page) is True
    assert ("the next width was not measured" in page.lower()) is not measured


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    for page in (render(frontier(name=name)), render_scale(scaled(name=name))):
        Document(page)
        assert "alert" not in name or "<" not in name or name not in page
