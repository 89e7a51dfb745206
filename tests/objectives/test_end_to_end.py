"""End to end, on a network whose output reads two quiet directions of its activations and not the loud ones."""

import pytest
import torch
from torch import nn

from tests.contracts.customers import Net
from tests.objectives.slopes import numeric_slope
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.objective import OnSequences, TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.dictionaries import SAE
from understudy.objectives import EndToEnd, LocalFVU
from understudy.sparsity import TopK
from understudy.workflows._training.aims import objective
from understudy.workflows._training.trainer import Schedule, Trainer
from understudy.workflows.train import TrainConfig

SITE, D, N = Site("first"), 8, 12


class Reader(nn.Module):
    """`first` passes x on; the output reads its first two directions, which vary least."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Linear(D, 2)
        with torch.no_grad():
            self.second.weight.copy_(torch.eye(2, D))

    def forward(self, x):
        return self.second(self.first(x)).log_softmax(-1)


def batch(seed: int = 0, n: int = 6, masked: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 1.0] + [4.0] * (D - 2))
    x = torch.randn(n, 5, D, generator=generator) * scale
    mask = torch.ones(n, 5, dtype=torch.bool)
    if masked:
        mask[:, 3:] = False
    return Batch({"x": x}, mask=mask)


class Behaving(Net):
    def divergence(self, a, b, batch):
        return (a.exp() * (a - b)).sum(-1)


def network() -> Net:
    torch.manual_seed(0)
    return Behaving(Reader(), batch())


def sae(k: int = 2) -> SAE:
    return SAE.start([SITE], [SITE], N, TopK(k), {SITE: batch(1, 100).inputs["x"].flatten(0, 1)}, 0)


def rows(b: Batch) -> dict:
    return {SITE: b.inputs["x"][b.mask]}


def loss(objective, group, b):
    acts = rows(b)
    return objective(group, acts, group.encode(acts), OnSequences(network(), b), TrainingState({SITE: 98.0}))


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_mean_divergence_at_places_that_count(masked):
    group, net, b = Group([sae()]), network(), batch(2, masked=masked)
    found = loss(EndToEnd("kl"), group, b)
    clean = net.forward(b)
    replaced = net.module.second(group.reconstruct({SITE: b.inputs["x"]})[SITE]).log_softmax(-1)
    kl = (clean.exp() * (clean - replaced)).sum(-1)[b.mask].mean()
    assert found.total.item() == pytest.approx(kl.item(), rel=1e-5)
    assert found.terms["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    local = LocalFVU()(group, rows(b), group.encode(rows(b)), None, TrainingState({SITE: 98.0})).total.item()
    assert found.terms["fvu"].item() == pytest.approx(local)
    both = loss(EndToEnd("kl", local_weight=0.5), group, b).total.item()
    assert both == pytest.approx(kl.item() + 0.5 * local, rel=1e-5)


def test_gradients_pass_through_the_network_to_every_parameter():
    group, b, step = Group([sae()]).double(), batch(2), 1e-5
    member = group.members[0]
    loss(EndToEnd("kl"), group, b).total.backward()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        parameter = getattr(member, name)
        entry = int(parameter.grad.abs().argmax())
        numeric = numeric_slope(lambda: loss(EndToEnd("kl"), group, b).total.item(), parameter, entry, step)
        assert parameter.grad.view(-1)[entry].item() == pytest.approx(numeric, rel=0.05), name
        assert abs(numeric) > 1e-5


def test_it_finds_what_the_output_reads_where_local_training_finds_what_is_loud():
    """At equal L0 and places. The trainer hands sequences to an objective that needs them."""
    kl = {}
    for name, aim in (("local", LocalFVU()), ("end to end", EndToEnd("kl"))):
        group, net = Group([sae(1)]), network()
        trainer = Trainer([group], aim, [TrainingState({SITE: 98.0})], Schedule(2e-2), 150 * 30, 10**9, 0.0)
        for i in range(150):
            b = batch(10 + i)
            trainer.train_step(rows(b), OnSequences(net, b) if aim.needs == "sequences" else None)
        with torch.no_grad():
            kl[name] = loss(EndToEnd("kl"), group, batch(999, 100)).total.item()
    assert kl["end to end"] < 0.7 * kl["local"]


def test_a_network_without_a_loss_says_so():
    with pytest.raises(BadInput, match=r"no loss of its own: train with the objective `kl`"):
        loss(EndToEnd("loss"), Group([sae()]), batch())


def test_the_loss_is_taken_over_places_that_have_a_target():
    class Lossy(Behaving):
        def loss(self, output, batch):
            scored = batch.targets != -100
            return torch.where(scored, -output[..., 0], 0.0)

    torch.manual_seed(0)
    net, plain = Lossy(Reader(), batch()), batch(3)
    targets = torch.zeros(6, 5, dtype=torch.long)
    targets[:, -1] = -100
    b = Batch(plain.inputs, mask=plain.mask, targets=targets)
    group, acts = Group([sae()]), rows(b)
    found = EndToEnd("loss")(group, acts, group.encode(acts), OnSequences(net, b), TrainingState({SITE: 98.0}))
    replaced = net.module.second(group.reconstruct({SITE: b.inputs["x"]})[SITE]).log_softmax(-1)
    assert found.total.item() == pytest.approx(-replaced[:, :-1, 0].mean().item(), rel=1e-5)


def test_what_the_output_does_not_read_is_free_without_the_local_term_alone():
    """A norm follows, and an SAE writes three times too much: to the divergence it is as good as before."""

    class Normed(Reader):
        def forward(self, x):
            return self.second(nn.functional.normalize(self.first(x), dim=-1)).log_softmax(-1)

    b, net = batch(4), Behaving(Normed(), batch())
    right = sae()
    loud = right.with_sparsity(TopK(2))
    with torch.no_grad():
        for name in ("W_dec", "b_dec", "out_center"):
            if (value := getattr(loud, name)) is not None:
                value *= 3

    def total(member: SAE, local_weight: float) -> float:
        group, acts = Group([member]), rows(b)
        state = TrainingState({SITE: 98.0})
        return EndToEnd("kl", local_weight)(group, acts, group.encode(acts), OnSequences(net, b), state).total.item()

    assert total(loud, 0.0) == pytest.approx(total(right, 0.0), rel=1e-4)
    assert total(loud, 0.5) > 1.5 * total(right, 0.5)


def test_training_end_to_end_keeps_the_local_term_unless_it_is_taken_out():
    """At --local-weight 0 thresholds were measured to cost an end-to-end dictionary more (docs/log.md)."""
    for asked, weight in ((None, 0.5), (0.0, 0.0), (2.0, 2.0)):
        for name in ("kl", "loss"):
            made = objective(TrainConfig(objective=name, local_weight=asked), 0)
            assert isinstance(made, EndToEnd)
            assert made.local_weight == weight
