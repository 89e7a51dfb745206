"""Figures, axes and names read as they should."""

import pytest

from understudy.core.records.metric import NotMeasured, exact
from understudy.core.records.scorecard import Token
from understudy.web.names import layer_names, parts_played
from understudy.web.numerals import as_text, count, figure, percent, plain
from understudy.web.scales import Scale, around_zero, linear_ticks, tick_text
from understudy.web.sections.places import by_contribution
from understudy.web.tokens import run_of_tokens, visible
from understudy.web.verdict import rivals_sentence, sentence

from .reports import measured, report


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (measured(0.2412, 0.0152), ("0.241", "[0.226, 0.256]", "nats")),
        (measured(1.872, 0.041), ("1.87", "[1.83, 1.91]", "nats")),
        (measured(0.8058, 0.006, "fraction"), ("80.6", "[80.0, 81.2]", "%")),
        (measured(-0.0428, 0.012), ("−0.043", "[−0.055, −0.031]", "nats")),
        (exact(32, "latents", 5), ("32.0", "", "latents")),
        (measured(15.666666666666666, 2e-15, "latents"), ("15.7", "", "latents")),  # an interval that is rounding
        (exact(0, "latents", 5), ("0", "", "latents")),
        (exact(3.2e12, "FLOPs", 5), ("3.2 T", "", "FLOPs")),
        (NotMeasured(not_measured="no loss"), ("not measured", "", "no loss")),
    ],
)
def test_digits_follow_the_interval(metric, text) -> None:
    assert as_text(metric) == text


def test_not_measured_shows_the_reason_and_never_a_number() -> None:
    shown = figure(NotMeasured(not_measured="no <loss>"))
    assert "not measured: no &lt;loss&gt;" in shown
    assert not any(c.isdigit() for c in shown)


def test_short_numbers() -> None:
    assert [count(v) for v in (9_999, 262_144, 2_000_000, 3.4e9)] == ["9,999", "262 k", "2.0 M", "3.4 G"]
    assert [percent(v) for v in (0, 0.00017, 0.0056, 0.62, 0.617)] == ["0%", "0.017%", "0.56%", "62%", "61.7%"]
    assert [plain(v) for v in (0, 0.14, -31.4, 12345, 1e-5)] == ["0", "0.140", "−31.4", "12,345", "1.00e−5"]


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale(0, 10)(2.5) == 25
    wide = around_zero([0.24, 0.25, 6.9], near=0.24)
    assert wide.kind == "asinh"
    assert wide(0.25) - wide(0.24) > 0.5
    assert 0.0 in wide.ticks()
    assert all(0 <= tick <= 8 for tick in wide.ticks())
    assert around_zero([0.24, 0.5], near=0.24).kind == "linear"
    assert tick_text(2_000_000) == "2M"


def test_layers_are_short_unique_and_count_what_is_left() -> None:
    assert layer_names(["model.layers.3.mlp:out", "model.layers.11.mlp:out"]) == {
        "model.layers.3.mlp:out": "L3",
        "model.layers.11.mlp:out": "L11",
    }
    assert list(layer_names(["blocks.1.mlp:out", "blocks.1.attn:out"]).values()) == ["D0", "D1"]
    assert list(layer_names(["a.0+a.1", "<b>"]).values()) == ["D0", "D1"]
    modules = [f"model.layers.{i}.mlp" for i in range(4)]
    assert parts_played(modules, ["attention", "norms"]) == "4 of 4 MLPs"
    assert parts_played(modules[:3], [modules[3], "norms"]) == "3 of 4 MLPs"
    assert parts_played([*modules, "model.layers.0.self_attn"], []) == "5 parts (4 mlp, 1 self_attn)"


def test_headline_says_what_is_played_at_what_loss() -> None:
    card = report(1, 1).scorecard
    said = sentence(card)
    assert "plays 4 of 4 MLPs at <strong>+0.241 nats</strong>" in said
    assert "3.4-gram" in said
    assert "62% of parameters and 55% of compute replaced." in said
    assert rivals_sentence(card) == (
        "On the same sequences it beats 2 of 5 rivals, loses to linear map, is undecided against top neurons "
        "(an oracle) and was not compared with unfinished."
    )
    lost = card.replacement.model_copy(update={"delta_loss": NotMeasured(not_measured="no loss here")})
    assert "not measured" in sentence(card.model_copy(update={"replacement": lost}))


def test_slices_by_what_they_add() -> None:
    names = [part.name for part in by_contribution(report(1, 1).scorecard.slices)]
    assert names[:2] == ["identifier, repeated", "identifier, first seen"]


def test_blanks_are_visible_and_active_tokens_shaded() -> None:
    assert visible("\n") == "<i>↵</i>"
    assert visible(" ") == "<i>·</i>"
    assert visible(" self", whole_token=True) == " self"
    assert visible("") == "<i>∅</i>"
    tokens = [Token(text="a", activation=0), Token(text="<b", activation=5), Token(text="\n", activation=0.1)]
    made = run_of_tokens(tokens, peak=1, maximum=5)
    assert made == 'a<b class="a9 peak" title="5.00">&lt;b</b><b class="a1" title="0.100"><i>↵</i></b>'
    assert "more characters" in visible("x" * 1000)
