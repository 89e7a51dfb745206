"""Stochastic masks on a network of two Linears: the terms against their definitions, gradients, and exact repeats."""

import pytest
import torch

from tests.contracts.customers import Net
from tests.dictionaries.test_components import D, N, all_open, network, started
from tests.objectives.slopes import numeric_slope
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.objective import OnSequences, TrainingState
from understudy.core.records.errors import BadInput
from understudy.dictionaries import SAE
from understudy.objectives import StochasticMasks
from understudy.sparsity import TopK


class Behaving(Net):
    def divergence(self, a, b, batch):
        return (a - b).square().mean(-1)


def behaving() -> Net:
    plain = network()
    return Behaving(plain.module, plain.example())


def evaluated(objective, group: Group, net: Net, batch: Batch | None = None, places: int = 0):
    batch = batch or net.example()
    acts = {
        s: v.flatten(0, -2)[batch.mask.reshape(-1)] for s, v in net.record(batch, (*group.reads, *group.writes)).items()
    }
    state = TrainingState(dict.fromkeys(group.writes, 2.0), places=places)
    return objective(group, acts, group.encode(acts), OnSequences(net, batch), state)


def closed(member) -> None:
    with torch.no_grad():
        member.sparsity.w_out.zero_()
        member.sparsity.b_out.fill_(-1.0)


def test_where_all_gates_are_open_and_nothing_is_left_over_no_mask_moves_the_output():
    net = behaving()
    group = started(net)
    for member in group.members:
        all_open(member)
        with torch.no_grad():  # factors whose sum is the weight
            U, S, V = torch.linalg.svd(member.weight, full_matrices=False)
            member.W_enc.zero_()
            member.W_dec.zero_()
            member.W_enc[: len(S)], member.W_dec[: len(S)] = U.T, S[:, None] * V
    group.after_step()
    found = evaluated(StochasticMasks(), group, net).terms
    assert found["stochastic"] < 1e-9
    assert found["layerwise"] < 1e-9
    assert found["faithfulness"] < 1e-9
    assert found["fvu"] < 1e-9
    price = sum(m.sparsity.importance * N * (1 + 0.01) for m in group.members)
    assert found["importance"].item() == pytest.approx(price, rel=1e-4)


def test_one_linear_with_closed_gates_is_off_by_what_uniform_masks_leave_out():
    """A linear network: E[(1 - u)^2] = 1/3 for independent parts, checked over many places."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(D, 1, bias=False)

        def forward(self, x):
            return self.up(x)

    torch.manual_seed(0)
    x = torch.randn(1, 20_000, D, generator=torch.Generator().manual_seed(1))
    net = Behaving(Line(), Batch({"x": x}, mask=torch.ones(1, 20_000, dtype=torch.bool)))
    from understudy.core.site import Site
    from understudy.dictionaries import Components
    from understudy.sparsity import CausalImportance

    member = Components.begin(net, (Site("up", "in"),), (Site("up"),), 2, CausalImportance.start(2), {}, 0)
    closed(member)
    with torch.no_grad():
        parts = torch.stack([x[0] @ member.W_enc[c] * member.W_dec[c, 0] for c in range(2)])
        rest = x[0] @ member.W_skip[:, 0]
        # sum of (1 - u_i) a_i: mean square = var 1/12 sum a_i^2 + (1/2 sum a_i)^2
        every = torch.cat([parts, rest[None]])
        wanted = (every.square().sum(0) / 12 + every.sum(0).square() / 4).mean()
    found = evaluated(StochasticMasks(), Group([member]), net).terms
    assert "layerwise" not in found, "with one Linear it is the same term"
    assert found["stochastic"].item() == pytest.approx(wanted.item(), rel=0.03)
    assert found["faithfulness"].item() == pytest.approx(member.W_skip.square().mean().item(), rel=1e-5)


def test_the_total_is_the_weighted_sum_of_its_terms():
    net = behaving()
    group = started(net)
    found = evaluated(StochasticMasks(layerwise=0.5, faithfulness=2.0), group, net)
    t = found.terms
    wanted = t["stochastic"] + 0.5 * t["layerwise"] + 2.0 * t["faithfulness"] + t["importance"]
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert all(not v.requires_grad for v in t.values())


def test_gradients_reach_every_factor_and_gate_and_are_those_of_the_loss():
    net, step = behaving(), 1e-3
    group = started(net)
    objective = StochasticMasks(faithfulness=1.0)
    evaluated(objective, group, net).total.backward()
    for name, parameter in group.named_parameters():
        assert parameter.grad is not None, name
        entry = int(parameter.grad.abs().argmax())
        numeric = numeric_slope(lambda: evaluated(objective, group, net).total.item(), parameter, entry, step)
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(numeric, rel=0.1, abs=2e-4), name


def test_a_step_draws_the_same_masks_again_and_the_next_one_others():
    net = behaving()
    group = started(net)
    once, again, later = (evaluated(StochasticMasks(), group, net, places=p).total.item() for p in (64, 64, 128))
    assert once == again
    assert once != later
    assert evaluated(StochasticMasks(seed=1), group, net, places=64).total.item() != once


def test_places_that_do_not_count_take_no_part():
    net = behaving()
    group = started(net)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, :2] = False
    batch = Batch(net.example().inputs, mask=mask)
    other = {"x": batch.inputs["x"].clone()}
    other["x"][:, :2] = 99.0
    one = evaluated(StochasticMasks(), group, net, batch).total.item()
    assert evaluated(StochasticMasks(), group, net, Batch(other, mask=mask)).total.item() == pytest.approx(one)


def test_other_dictionaries_are_refused_and_told_what_to_do():
    net = behaving()
    site = started(net).writes[0]
    sae = SAE.start([site], [site], 8, TopK(2), {site: torch.randn(50, 4)}, 0)
    with pytest.raises(BadInput, match="--kind components, or another --objective"):
        evaluated(StochasticMasks(), Group([sae]), net)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(BadInput, match="faithfulness"):
        StochasticMasks(faithfulness=weight)
