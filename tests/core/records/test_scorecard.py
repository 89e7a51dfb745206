import pytest
from pydantic import ValidationError

from understudy.core.records.metric import Measured, Metric, NotMeasured, exact
from understudy.core.records.scorecard import Behaviour, Recovered, Replaced, Rival, Rollout, Scorecard

NONE = NotMeasured(not_measured="not run")
BEHAVIOUR = Behaviour(
    loss_clean=exact(1, "nats", 4), loss_replaced=exact(2, "nats", 4), delta_loss=exact(1, "nats", 4), kl=NONE,
    top1_agreement=NONE, recovered=Recovered(zero=NONE, mean=NONE, position_mean=NONE, resample=NONE),
    equivalent_ngram=NONE, equivalent_compute=NONE,
)  # fmt: skip


def rival(delta: Metric) -> Rival:
    return Rival(l0=exact(4, "latents", 4), replacement=BEHAVIOUR, paired_delta_loss=delta)


def nats(low: float, high: float) -> Measured:
    return Measured(value=(low + high) / 2, low=low, high=high, unit="nats", n=4)


@pytest.mark.parametrize(
    ("delta", "verdict"),
    [
        (nats(0.1, 0.2), "worse"),
        (nats(-0.2, -0.1), "better"),
        (nats(-0.1, 0.1), "undecided"),
        (nats(0.0, 0.1), "undecided"),
        (nats(-0.1, 0.0), "undecided"),
        (NONE, "not measured"),
    ],
)
def test_a_rival_is_worse_or_better_only_where_the_interval_excludes_0(delta, verdict):
    assert rival(delta).verdict == verdict


def test_a_scorecard_round_trips_and_refuses_what_it_does_not_know():
    card = Scorecard(
        run="r", network="n", data="d", dictionaries=[], replacement=BEHAVIOUR,
        baselines={"pca": rival(nats(0.1, 0.2))}, slices=[], positions=[], rollout=Rollout(),
        ngram_losses={"2": exact(3, "nats", 4)},
        replaced=Replaced(modules=["mlp.0"], share_of_parameters=0.1, share_of_compute=0.2, still_original=["attn"]),
    )  # fmt: skip
    again = Scorecard.model_validate_json(card.model_dump_json())
    assert again == card
    assert again.baselines["pca"].verdict == "worse"
    assert isinstance(again.rollout.delta_loss, NotMeasured)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Scorecard.model_validate(card.model_dump() | {"headline": 1})
