import math

import pytest
from pydantic import ValidationError

from understudy.core.records.metric import Measured, Metric, NotMeasured, Record, exact


class Holder(Record):
    figure: Metric


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_measured_figure_is_finite(bad, field):
    with pytest.raises(ValidationError, match=r"use NotMeasured\(reason\)"):
        Measured(**({"value": 1.0, "low": 0.5, "high": 2.0, "unit": "nats", "n": 3} | {field: bad}))


def test_neither_null_nor_a_number_passes_for_a_figure():
    for bad in (None, 0, {}, {"value": 1.0}):
        with pytest.raises(ValidationError):
            Holder.model_validate({"figure": bad})


@pytest.mark.parametrize("figure", [exact(3, "latents", 7), NotMeasured(not_measured="no loss of its own")])
def test_json_round_trip_keeps_which_of_the_two_it_is(figure):
    assert Holder.model_validate_json(Holder(figure=figure).model_dump_json()).figure == figure


def test_how_figures_read():
    assert str(Measured(value=0.123456, low=0.1, high=0.2, unit="nats", n=9)) == "0.1235 [0.1, 0.2] nats"
    assert str(exact(12, "latents", 1)) == "12 latents"
    assert str(NotMeasured(not_measured="too short")) == "not measured: too short"


def test_figures_are_frozen():
    with pytest.raises(ValidationError):
        exact(1, "nats", 1).value = 2
