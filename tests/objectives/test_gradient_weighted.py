"""Gradient-weighted: known answers on linear networks, no weight where nobody reads, the same for logits, finite
differences, and better behaviour than local training at equal sparsity."""

import pytest
import torch
from torch import nn

from tests.contracts.customers import Net
from tests.objectives.slopes import numeric_slope
from tests.objectives.test_end_to_end import SITE, Reader, batch, rows, sae
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.objective import OnSequences, TrainingState
from understudy.dictionaries import SAE
from understudy.objectives import EndToEnd, GradientWeighted, LocalFVU
from understudy.objectives.gradient_weighted import gradients
from understudy.sparsity import TopK
from understudy.workflows._training.trainer import Schedule, Trainer

D = 8


class Line(nn.Module):
    """`first` passes x on, `second` is linear: the output is known from the error exactly."""

    def __init__(self, d_out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Linear(D, d_out)

    def forward(self, x):
        return self.second(self.first(x))


class Numbers(Net):
    divergence_unit = "mean squared difference"

    def divergence(self, a, b, batch):
        return (a - b).square().mean(-1)


class Nats(Net):
    divergence_unit = "nats"

    def divergence(self, a, b, batch):
        a, b = a.log_softmax(-1), b.log_softmax(-1)
        return (a.exp() * (a - b)).sum(-1)


def line(d_out: int, cls=Numbers, masked: bool = False) -> Net:
    torch.manual_seed(0)
    return cls(Line(d_out), batch(2, masked=masked))


def evaluated(objective, group, net, b=None, places=0):
    b = b or net.example()
    acts = rows(b)
    return objective(group, acts, group.encode(acts), OnSequences(net, b), TrainingState({SITE: 98.0}, places=places))


@pytest.mark.parametrize("masked", [False, True])
def test_with_one_linear_output_it_is_the_share_of_the_outputs_variance(masked):
    """|g . e| = |w . e| whatever the sign that is drawn: no probe is needed to be lucky."""
    net, group = line(1, masked=masked), Group([sae()])
    b = net.example()
    found = evaluated(GradientWeighted(local_weight=0.0), group, net)
    x, w = rows(b)[SITE], net.module.second.weight[0]
    with torch.no_grad():
        e = x - group.reconstruct(rows(b))[SITE]
        wanted = (e @ w).square().sum() / ((x - x.mean(0)) @ w).square().sum()
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found.terms["weighted"].item() == pytest.approx(wanted.item(), rel=1e-5)
    both = evaluated(GradientWeighted(local_weight=0.5), group, net)
    assert both.total.item() == pytest.approx(wanted.item() + 0.5 * both.terms["fvu"].item(), rel=1e-5)


def test_with_several_it_is_that_on_average_over_probes():
    net, group = line(5), Group([sae()])
    found = evaluated(GradientWeighted(probes=2000, local_weight=0.0), group, net).total.item()
    x, W = rows(net.example())[SITE], net.module.second.weight
    with torch.no_grad():
        e = x - group.reconstruct(rows(net.example()))[SITE]
        wanted = (e @ W.T).square().sum() / ((x - x.mean(0)) @ W.T).square().sum()
    assert found == pytest.approx(wanted.item(), rel=0.05)


def test_of_logits_a_small_error_costs_twice_the_divergence_it_causes():
    net = line(4, Nats)
    b, e = net.example(), 1e-2 * torch.randn(D, generator=torch.Generator().manual_seed(5))
    slopes = gradients(OnSequences(net, b), (SITE,), 3000, 7)
    second_order = torch.stack([(g[SITE] @ e).square().mean() for g in slopes]).mean() / 2
    with net.edited({SITE: lambda value, call: value + e}):
        moved = net.forward(b)
    wanted = net.divergence(net.forward(b), moved, b).mean()
    assert second_order.item() == pytest.approx(wanted.item(), rel=0.1)


def test_the_slope_at_a_place_is_of_all_outputs_after_it():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x):
            return self.first(x).cumsum(1)[..., :1]

    net = Numbers(Sums(), batch(2))
    (slopes,) = gradients(OnSequences(net, net.example()), (SITE,), 1, 0)
    g = slopes[SITE].view(6, 5, D)
    assert not g[..., 1:].any()
    assert set(g[:, 4, 0].tolist()) == {-1.0, 1.0}, "the last place moves one output"
    assert set(g[:, 0, 0].abs().tolist()) <= {1.0, 3.0, 5.0}, "the first moves five: a sum of five signs"


def test_errors_that_nobody_reads_are_free():
    torch.manual_seed(0)
    net = Numbers(Line(1), batch(2))
    with torch.no_grad():
        net.module.second.weight.zero_()
        net.module.second.weight[0, 0] = 1.0
    x = rows(net.example())[SITE]

    class Drops(SAE):
        def decode(self, z):
            return {SITE: torch.zeros_like(x)}

        def rest(self, acts):
            kept = torch.zeros(D)
            kept[0] = 1.0
            return {SITE: acts[SITE] * kept}

    made = sae()
    made.__class__ = Drops
    found = evaluated(GradientWeighted(local_weight=0.0), Group([made]), net)
    assert found.total.item() == 0
    assert found.terms["fvu"] > 0.5


def test_gradients_are_those_of_the_loss_and_reach_every_parameter():
    group, net, step = Group([sae()]).double(), line(3), 1e-5
    member, objective = group.members[0], GradientWeighted(probes=2, local_weight=0.1)
    evaluated(objective, group, net).total.backward()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        parameter = getattr(member, name)
        entry = int(parameter.grad.abs().argmax())
        numeric = numeric_slope(lambda: evaluated(objective, group, net).total.item(), parameter, entry, step)
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(numeric, rel=0.05), name
    assert all(p.grad is None for p in net.module.parameters()), "the network is not trained"


def test_a_step_draws_the_same_outputs_again_and_the_next_one_others():
    net, group = line(5), Group([sae()])
    values = [evaluated(GradientWeighted(), group, net, places=p).total.item() for p in (64, 64, 128)]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_it_finds_what_the_output_reads_where_local_training_finds_what_is_loud():
    """At equal L0 and places: the divergence of each objective's replacement."""

    class Read(Net):
        def divergence(self, a, b, batch):
            return (a.exp() * (a - b)).sum(-1)

    kl = {}
    for name, objective in (("local", LocalFVU()), ("weighted", GradientWeighted(local_weight=0.0))):
        torch.manual_seed(0)
        group, net = Group([sae(1)]), Read(Reader(), batch())
        trainer = Trainer([group], objective, [TrainingState({SITE: 98.0})], Schedule(2e-2), 150 * 30, 10**9, 0.0)
        for i in range(150):
            b = batch(10 + i)
            trainer.train_step(rows(b), OnSequences(net, b) if objective.needs == "sequences" else None)
        with torch.no_grad():
            kl[name] = evaluated(EndToEnd("kl"), group, net, batch(999, 100)).total.item()
    assert kl["weighted"] < 0.7 * kl["local"]


def test_two_sites_one_behind_the_other_each_have_the_slope_of_what_comes_after():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(D, 3), nn.Linear(3, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.third(self.second(self.first(x)))

    from understudy.core.site import Site

    torch.manual_seed(0)
    net = Numbers(Chain(), Batch({"x": torch.randn(2, 3, D)}, mask=torch.ones(2, 3, dtype=torch.bool)))
    a, b = Site("first"), Site("second")
    (slopes,) = gradients(OnSequences(net, net.example()), (a, b), 1, 0)
    torch.testing.assert_close(slopes[b].abs(), net.module.third.weight.abs().expand(6, 2))
    torch.testing.assert_close(slopes[a].abs(), (net.module.third.weight @ net.module.second.weight).abs().expand(6, 3))


def test_it_trains_with_a_rule_that_has_a_price():
    net, group = line(2), Group([SAE.start([SITE], [SITE], 12, TopK(2), rows(batch(1, 100)), 0)])
    assert evaluated(GradientWeighted(local=LocalFVU(2)), group, net).total.isfinite()
