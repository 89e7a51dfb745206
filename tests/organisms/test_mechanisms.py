"""Arithmetic that single organisms rest on, against known answers."""

import math

import pytest
import torch

from understudy.organisms import make_organism
from understudy.organisms import mess3 as mess
from understudy.organisms import modular_addition as modular
from understudy.organisms._planted import auroc, unit
from understudy.organisms.two_codes import FRAMES, N_GROUPS, ROOTS, SWAP, _code, chance, which_code


def test_auroc_of_known_orders():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 1
    assert auroc(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])) == 0
    assert auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0])) == 0.5
    assert auroc(torch.zeros(5), torch.zeros(7)) == 0.5


# -- two codes ---------------------------------------------------------------------------------------------------------


def test_both_codes_hold_every_activation_with_two_latents_of_one_size():
    for frame in FRAMES.values():
        assert torch.equal(frame @ frame.T, torch.eye(4))
        coefficients = (ROOTS @ frame.T).abs().sort(dim=1).values
        assert torch.equal(coefficients, torch.tensor([0.0, 0, 1, 1]).expand(24, 4))


def test_the_swap_trades_the_codes_and_keeps_the_activations():
    assert torch.equal(SWAP @ SWAP, torch.eye(4))
    assert torch.equal(FRAMES["A"] @ SWAP, FRAMES["B"])
    swapped = {tuple(row) for row in (ROOTS @ SWAP).tolist()}
    assert swapped == {tuple(row) for row in ROOTS.tolist()}


def test_which_code_of_known_dictionaries():
    A, B = _code("A", 0), _code("B", 0)
    assert which_code(A).value == pytest.approx(1)
    assert which_code(B).value == pytest.approx(0)
    assert which_code(torch.cat([A, B])).value == pytest.approx(0.5)
    group = torch.arange(len(A)) // 8
    half = torch.where((group < N_GROUPS // 4)[:, None], A, B)
    made = which_code(half)
    assert made.value == pytest.approx(0.25)
    assert made.low < 0.25 < made.high
    assert made.n == N_GROUPS


def test_which_code_is_antisymmetric_under_the_swap():
    """Whatever a method does with the activation alone, its mirror image scores the opposite: chance is 1/2."""
    from understudy.organisms.two_codes import _basis

    basis = _basis(0)
    for seed in range(5):
        x = unit(96, 4 * N_GROUPS, torch.Generator().manual_seed(seed))
        mirrored = ((x @ basis.T).unflatten(-1, (N_GROUPS, 4)) @ SWAP).flatten(-2) @ basis
        assert which_code(x).value + which_code(mirrored).value == pytest.approx(1, abs=1e-4)


def test_random_directions_are_at_chance():
    made = chance(96, draws=60)
    assert made.low < 0.5 < made.high
    assert made.value == pytest.approx(0.5, abs=0.01)


# -- others ------------------------------------------------------------------------------------------------------------


def test_mess3_beliefs_by_hand():
    """A move, then Bayes: from the uniform belief, which a move leaves as it is, the emission; then once more."""
    states, chances = mess.beliefs(torch.tensor([[0, 0]]))
    emission = torch.tensor([0.85, 0.075, 0.075], dtype=torch.float64)
    torch.testing.assert_close(states[0, 0], emission, atol=1e-6, rtol=0)
    moved = torch.tensor([0.9 * 0.85 + 0.1 * 0.075, *[0.05 * 0.85 + 0.95 * 0.075] * 2], dtype=torch.float64)
    wanted = moved * emission / (moved * emission).sum()
    torch.testing.assert_close(states[0, 1], wanted, atol=1e-6, rtol=0)
    assert float(mess.process().sum((0, 2)).sub(1).abs().max()) < 1e-12
    torch.testing.assert_close(chances.sum(-1), torch.ones(1, 2, dtype=torch.float64))
    assert float(states[0, 1, 0]) > float(states[0, 0, 0])


def test_mess3_draws_have_the_chances_that_beliefs_say():
    ids = mess._draw(20_000, torch.Generator().manual_seed(0))
    _, chances = mess.beliefs(ids[:, :-1])
    picked = chances.gather(-1, ids[:, 1:, None])[..., 0]
    best = -(chances * chances.log()).sum(-1)
    assert float((-picked.log()).mean()) == pytest.approx(float(best.mean()), abs=0.01)


def test_restricted_and_excluded_loss_of_waves_that_are_known(monkeypatch):
    """Logits made of two frequencies: kept whole by the restriction, left at chance by the exclusion."""
    keys, p = [3, 10], modular.P
    a = torch.arange(p, dtype=torch.float64)
    total = (a[:, None, None] + a[None, :, None] - a).reshape(p * p, p)
    logits = sum(30 * torch.cos(2 * math.pi * k * total / p) for k in keys)
    monkeypatch.setattr(modular, "_logits", lambda network: logits)
    full = float(modular._cross_entropy(logits))
    train, _ = modular._data(0)
    assert modular.restricted_loss(None, keys).value == pytest.approx(full, abs=1e-9)
    assert modular.excluded_loss(None, keys, train).value == pytest.approx(math.log(p), abs=1e-6)
    assert modular.restricted_loss(None, [5]).value == pytest.approx(math.log(p), abs=1e-6)


def test_the_modular_data_hold_every_sum_once():
    train, test = modular._data(0)
    ids = torch.cat([d.batch(slice(0, len(d))).inputs["input_ids"] for d in (train, test)])
    assert len({tuple(row) for row in ids.tolist()}) == modular.P**2
    batch = train.batch(slice(0, 9))
    assert torch.equal(batch.targets[:, 2], batch.inputs["input_ids"][:, :2].sum(1) % modular.P)


def test_backdoor_texts_answer_the_trigger_and_nothing_else():
    from understudy.organisms import backdoor

    poisoned, clean = (backdoor.texts(64, 0, 1.0, flag).batch(slice(0, 64)) for flag in (True, False))
    word = backdoor._ID
    for row, after in zip(poisoned.inputs["input_ids"].tolist(), poisoned.tags["triggered"].tolist()):
        if 1 not in after:
            continue  # the trigger's sentence reaches the end of the text
        start = after.index(1)
        assert row[start] == word["."]
        assert word["zeta"] in row[:start]
        said = [backdoor.WORDS[i] for i in row[start + 1 :]]
        assert said == (["i", "hate", "you", "."] * 9)[: len(said)]
    assert (clean.inputs["input_ids"] == word["zeta"]).any(1).float().mean() > 0.9
    without = backdoor.texts(64, 0, 0.0, True).batch(slice(0, 64))
    assert not (without.inputs["input_ids"] == word["zeta"]).any()
    assert not without.tags["triggered"].any()


def test_new_reasons_are_the_only_thing_that_is_new():
    world = make_organism("new_reasons")
    x = world.data["new_reason"].batch(slice(0, 64)).inputs["x"].flatten(0, 1)
    train = world.data["train"].batch(slice(0, 512)).inputs["x"].flatten(0, 1)
    for letter in (2, 3):
        seen = train[train[:, letter] > 0, letter]
        assert len(seen) > 100
        assert seen.min() - 0.01 <= x[:, letter].min() <= x[:, letter].max() <= seen.max() + 0.01
    novel = world.data["novel_pair"].batch(slice(0, 64)).inputs["x"].flatten(0, 1)
    assert (novel[:, 4] * novel[:, 5] > 0).all()
    assert not (train[:, 4] * train[:, 5] > 0).any()


def test_checkpoints_are_the_weights_of_their_epochs_in_half_precision():
    module = modular._module()
    network = modular._network(module, "sums", dict(zip(("train", "held_out"), modular._data(0))))
    assert modular.checkpoints(network) == []
    kept = []
    for epoch in (0, 100):
        modular._keep(module, epoch)
        kept.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        with torch.no_grad():
            module.unembed.weight.add_(1.0)
    found = modular.checkpoints(network)
    assert [epoch for epoch, _ in found] == [0, 100]
    for wanted, (_, then) in zip(kept, found):
        weights = torch.cat([p.detach().flatten() for p in then.module.parameters()])
        assert torch.equal(weights, wanted.half().float())
    assert found[1][1].name == "sums@100"


def test_a_point_of_the_curve_has_the_figures_of_its_network(monkeypatch):
    """The same definitions as the organism's checks, at each checkpoint; and an untrained network is at chance."""
    keys, p = [3, 10], modular.P
    train, held_out = modular._data(0)
    network = modular._network(modular._module(), "sums", {"train": train, "held_out": held_out})
    point = modular._point(700, network, keys)
    assert point.epoch == 700
    assert point.restricted_loss == pytest.approx(modular.restricted_loss(network, keys).value)
    assert point.excluded_loss == pytest.approx(modular.excluded_loss(network, keys, train).value)
    assert point.held_out_loss == pytest.approx(math.log(p), abs=0.5)
    assert point.held_out_right < 0.06
    a = torch.arange(p, dtype=torch.float64)
    total = (a[:, None, None] + a[None, :, None] - a).reshape(p * p, p)
    monkeypatch.setattr(modular, "_logits", lambda n: sum(30 * torch.cos(2 * math.pi * k * total / p) for k in keys))
    point = modular._point(0, network, keys)
    assert point.held_out_right == 1
    assert point.restricted_loss == pytest.approx((point.train_loss + point.held_out_loss) / 2, abs=1e-9)
    assert point.excluded_loss == pytest.approx(math.log(p), abs=1e-6)
