import numpy as np
import pytest
import torch

from understudy.core.records.errors import NonFiniteLoss, UnknownName, WrongShape
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import ArmSums, Bootstrap

N, POS = 30, 20
KINDS = ("name", "number")


@pytest.fixture
def batch():
    torch.manual_seed(0)
    clean = torch.rand(N, POS) + 2
    return {
        "clean": clean,
        "replaced": clean + 0.5,
        "mean": clean + 2,
        "kl": torch.rand(N, POS),
        "agree": torch.rand(N, POS) > 0.3,
        "scored": torch.rand(N, POS) > 0.2,
        "position": torch.arange(POS).expand(N, POS),
        "kind": torch.randint(-1, 2, (N, POS)),
    }


def arm(batch, name, size=N, order=None, scored=None, full=True) -> ArmSums:
    sums = ArmSums(name, N, {"kind": KINDS})
    for rows in (torch.arange(N) if order is None else order).split(size):
        more = {"kl": batch["kl"][rows], "agree": batch["agree"][rows]} if full else {}
        sums.add(
            rows,
            (batch["scored"] if scored is None else scored)[rows],
            batch[name][rows],
            position=batch["position"][rows],
            tags={"kind": batch["kind"][rows]},
            **more,
        )
    return sums


def value(figure) -> float:
    assert isinstance(figure, Measured), figure
    return figure.value


def test_figures_are_means_over_scored_places(batch):
    sums, bootstrap, scored = arm(batch, "clean"), Bootstrap(N), batch["scored"]
    assert value(sums.loss(bootstrap)) == pytest.approx(float(batch["clean"][scored].mean()), rel=1e-6)
    assert value(sums.kl(bootstrap)) == pytest.approx(float(batch["kl"][scored].mean()), rel=1e-6)
    assert value(sums.top1_agreement(bootstrap)) == pytest.approx(float(batch["agree"][scored].double().mean()))
    late = scored & (batch["position"] >= 4) & (batch["position"] < 16)
    assert value(sums.loss(bootstrap, "position/4-15")) == pytest.approx(float(batch["clean"][late].mean()), rel=1e-6)
    first = scored & (batch["position"] == 0)
    assert value(sums.kl(bootstrap, "position/0")) == pytest.approx(float(batch["kl"][first].mean()), rel=1e-6)
    number = scored & (batch["kind"] == 1)
    assert value(sums.loss(bootstrap, "kind/number")) == pytest.approx(float(batch["clean"][number].mean()), rel=1e-6)


def test_slices_of_a_column_add_up(batch):
    sums = arm(batch, "clean")
    positions = [i for i, name in enumerate(sums.slices) if name.startswith("position/")]
    np.testing.assert_array_equal(sums.count[positions].sum(0), sums.count[0])
    np.testing.assert_allclose(sums.sums["loss"][positions].sum(0), sums.sums["loss"][0])


def test_arms_are_compared_in_pairs(batch):
    bootstrap = Bootstrap(N)
    clean, replaced, mean = (arm(batch, name) for name in ("clean", "replaced", "mean"))
    delta = replaced.delta_loss(clean, bootstrap)
    assert isinstance(delta, Measured)
    assert delta.value == pytest.approx(0.5, rel=1e-5)
    assert delta.high - delta.low < 1e-5
    nothing = clean.delta_loss(clean, bootstrap)
    assert isinstance(nothing, Measured)
    assert nothing.value == nothing.low == nothing.high == 0
    assert value(replaced.recovered(mean, clean, bootstrap)) == pytest.approx(0.75, rel=1e-5)
    assert value(replaced.recovered(mean, clean, bootstrap, "kind/name")) == pytest.approx(0.75, rel=1e-5)
    assert isinstance(clean.recovered(clean, clean, bootstrap), NotMeasured)


def test_arms_scored_on_different_places_are_refused(batch):
    shifted = batch["scored"].roll(1, 1)  # as many places in each sequence, but others
    clean, replaced = arm(batch, "clean", full=False), arm(batch, "replaced", scored=shifted, full=False)
    with pytest.raises(WrongShape, match="'replaced' and 'clean' were scored on different places"):
        replaced.delta_loss(clean, Bootstrap(N))
    with pytest.raises(WrongShape, match="one mask"):
        clean.recovered(replaced, clean, Bootstrap(N))


def test_batches_order_and_shards_do_not_matter(batch):
    whole = arm(batch, "clean")
    for other in (arm(batch, "clean", size=7), arm(batch, "clean", size=4, order=torch.randperm(N))):
        np.testing.assert_array_equal(other.sums["loss"], whole.sums["loss"])
        np.testing.assert_array_equal(other._scored, whole._scored)
    merged = ArmSums("clean", N, {"kind": KINDS})
    for rows in torch.arange(N).split(11):
        merged = merged.merge(arm(batch, "clean", order=rows))
    for name in ("loss", "kl", "agree"):
        np.testing.assert_array_equal(merged.sums[name], whole.sums[name])
    assert value(merged.delta_loss(whole, Bootstrap(N))) == 0
    with pytest.raises(WrongShape, match="Cannot merge"):
        merged.merge(ArmSums("clean", N))


def test_padding_does_not_matter_whatever_it_holds(batch):
    padded = {k: torch.cat([v, v], 1) for k, v in batch.items()}
    for name in ("clean", "kl"):
        padded[name][:, POS:] = float("nan")
    padded["scored"][:, POS:] = False
    padded["kind"][:, POS:] = 77
    np.testing.assert_array_equal(arm(padded, "clean").sums["kl"], arm(batch, "clean").sums["kl"])
    assert value(arm(padded, "clean").delta_loss(arm(batch, "clean"), Bootstrap(N))) == 0


def test_places_with_two_axes(batch):
    scored = torch.rand(4, 3, 5) > 0.5
    loss = torch.rand(4, 3, 5)
    sums = ArmSums("clean", 4)
    sums.add(torch.arange(4), scored, loss)
    assert value(sums.loss(Bootstrap(4))) == pytest.approx(float(loss[scored].mean()), rel=1e-6)
    assert isinstance(sums.loss(Bootstrap(4), "position/0"), NotMeasured)


def test_a_loss_that_is_not_finite_is_said_not_skipped(batch):
    at = int(batch["scored"][3].nonzero()[2])
    batch["clean"][3, at] = float("nan")
    with pytest.raises(NonFiniteLoss, match=f"loss of arm 'clean' is nan at sequence 3, place {at}"):
        arm(batch, "clean")


def test_what_was_not_given_is_not_measured(batch):
    clean, bootstrap = arm(batch, "clean", full=False), Bootstrap(N)
    figure = clean.kl(bootstrap)
    assert isinstance(figure, NotMeasured)
    assert "given no kl" in figure.not_measured
    figure = clean.loss(bootstrap, "position/1024-4095")
    assert isinstance(figure, NotMeasured)
    assert "no scored place" in figure.not_measured
    with pytest.raises(UnknownName, match="Did you mean"):
        clean.loss(bootstrap, "kind/numbers")
    with pytest.raises(WrongShape, match="was given"):
        clean.add(torch.arange(N), batch["scored"], batch["clean"], batch["kl"])
    with pytest.raises(WrongShape, match="only 2 names"):
        clean.add(torch.arange(N), batch["scored"], batch["clean"], tags={"kind": batch["kind"] + 2})
