"""The command on a grid of seconds: laws from its own runs, a next width that is trained, nothing where none is."""

import pytest

from tests.workflows.grid.conftest import tiny_grid
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.scale import ScaleCard
from understudy.workflows.scale import ScaleConfig, scale


@pytest.fixture(scope="module")
def scaled(text, tmp_path_factory) -> tuple[dict, ScaleCard]:
    values = tiny_grid(text, tmp_path_factory.mktemp("scale"))
    values |= {"n_latents": "16,32,64", "k": "2,4", "lr_factors": "1,4", "places": 6_000, "sequences": 8}
    made = scale(ScaleConfig(**values))
    assert isinstance(made, ScaleCard)
    return values, made


def test_the_card_holds_the_grid_and_the_next_width(scaled):
    values, card = scaled
    assert [(c.n_latents, c.k) for c in card.grid] == [(n, k) for n in (16, 32, 64) for k in (2, 4)]
    assert all(c.l0.value <= c.k for c in card.grid)
    assert [(p.n_latents, p.k) for p in card.predictions] == [(128, 2), (128, 4)]
    assert [r.n_latents for r in card.rates] == [16, 32, 64, 128]
    assert all(len(r.fvu) == 2 for r in card.rates)
    assert ScaleCard.model_validate_json((values["out"] / "scale.json").read_text()) == card


def test_off_is_measured_over_predicted(scaled):
    _, card = scaled
    for p in card.predictions:
        assert p.off.value == pytest.approx(p.measured.value / p.predicted.value - 1)
    assert f"{max(abs(p.off.value) for p in card.predictions):.1%}" in card.verdict


def test_two_rates_have_no_lowest_point_and_nothing_is_made_up(scaled):
    _, card = scaled
    assert isinstance(card.rate_slope, NotMeasured)
    assert "16, 32, 64" in card.rate_slope.not_measured
    assert isinstance(card.next_rate, NotMeasured)
    assert any("recipe's rate x" in note for note in card.notes)
    assert all(isinstance(value, Measured) for value in card.law.values())
    assert "not measured" in str(card)


def test_a_finished_grid_resumes_to_the_same_card(scaled, monkeypatch):
    values, card = scaled
    monkeypatch.setattr("understudy.workflows._grid.stage.train_together", lambda *a: pytest.fail("trained again"))
    assert scale(ScaleConfig(**{**values, "resume": True})) == card


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"rule": "relu"}, BadInput, "cannot be asked for an L0"),
        ({"rule": "topkk"}, UnknownName, "topk"),
        ({"n_latents": "16,32"}, BadInput, "3 widths"),
        ({"k": "4"}, BadInput, "at least 2"),
        ({"k": "4,32", "n_latents": "16,32,64"}, BadInput, "n_latents=16"),
        ({"next_n": 32}, BadInput, "inside the grid"),
        ({"site": "mlp", "kind": "transcoder"}, BadInput, "sites to write"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tiny, wrong, error, says):
    values = {**tiny, "n_latents": "16,32,64", "k": "2,4", **wrong}
    with pytest.raises(error, match=says):
        scale(ScaleConfig(**values))
    assert not tiny["out"].exists()
