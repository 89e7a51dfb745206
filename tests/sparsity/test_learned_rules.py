"""ReLU with L1 and Gated, against their formulas on dense matrices."""

import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.latents import Encoded, LinearPre
from understudy.core.objective import TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.dictionaries import Transcoder
from understudy.objectives import LocalFVU
from understudy.sparsity import Gated, ReLU

N, D, ROWS = 10, 4, 30
A, B = Site("a"), Site("b")


def pre() -> LinearPre:
    g = torch.Generator().manual_seed(0)
    return LinearPre(*(torch.randn(*s, generator=g).double() for s in ((ROWS, D), (N, D), (N,))))


def gated(l1: float = 0.3) -> Gated:
    g = torch.Generator().manual_seed(1)
    return Gated(*(torch.randn(N, generator=g).double() / 2 for _ in range(2)), l1, warmup=0.0)


def full(p: LinearPre) -> torch.Tensor:
    return p.x @ p.W.T + p.b


def test_relu_keeps_what_is_positive_and_pays_for_it_by_length():
    p, length = pre(), torch.rand(N).double()
    rule = ReLU(N, 0.3, warmup=0.0)
    torch.testing.assert_close(rule(p).dense(), full(p).relu())
    penalty = rule.penalty(Encoded(rule(p), p), lambda: length, None, 1.0)["sparsity"]
    assert penalty.item() == pytest.approx(0.3 * (full(p).relu() * length).sum().item() / ROWS)


def test_the_length_is_paid_for_too_so_long_atoms_are_no_way_around():
    """Latents half as large with atoms twice as long rebuild the same, and cost the same."""
    acts = {s: torch.randn(ROWS, D, generator=torch.Generator().manual_seed(i)) for i, s in enumerate((A, B))}
    totals = []
    for factor in (1.0, 0.5):
        made = Transcoder.start([A], [B], N, ReLU(N, 0.3, warmup=0.0), acts, 0)
        with torch.no_grad():
            made.W_dec.normal_(generator=torch.Generator().manual_seed(2)).div_(factor)
            made.W_enc.mul_(factor)
            made.b_enc.mul_(factor)
        state = TrainingState({B: 2.0})
        loss = LocalFVU()(Group([made]), acts, Group([made]).encode(acts), None, state)
        totals.append((loss.total.item(), loss.terms["sparsity"].item()))
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
    assert totals[0][1] > 0.01


def test_gated_is_the_published_formula():
    p, rule = pre(), gated()
    pi = full(p)
    expected = (pi > 0) * (rule.r_mag.exp() * pi + rule.b_mag).relu()
    torch.testing.assert_close(rule(p).dense(), expected)
    # Their form: one shared W x, with a gate bias and a magnitude bias of its own.
    w = p.x @ p.W.T
    b_mag = rule.b_mag + rule.r_mag.exp() * p.b
    torch.testing.assert_close(expected, (w + p.b > 0) * (rule.r_mag.exp() * w + b_mag).relu())


def test_the_gate_alone_pays_and_the_magnitude_does_not():
    p, rule, length = pre(), gated(), torch.rand(N).double().requires_grad_()
    p = LinearPre(p.x, p.W, p.b.requires_grad_())
    penalty = rule.penalty(Encoded(rule(p), p), lambda: length, None, 1.0)["sparsity"]
    assert penalty.item() == pytest.approx(0.3 * (full(p).relu() * length).sum().item() / ROWS)
    penalty.backward()
    torch.testing.assert_close(p.b.grad, 0.3 * length.detach() * (full(p) > 0).sum(0) / ROWS)
    assert rule.r_mag.grad is None
    assert length.grad is None


def test_the_gate_must_rebuild_through_a_decoder_that_it_does_not_move():
    """Their auxiliary loss: its gradient reaches the encoder and never W_dec or b_dec."""
    acts = {s: torch.randn(ROWS, D, generator=torch.Generator().manual_seed(i)) + 1 for i, s in enumerate((A, B))}
    made = Transcoder.start([A], [B], N, gated(0.0).float(), acts, 0)
    with torch.no_grad():
        made.W_dec.normal_(generator=torch.Generator().manual_seed(2))
        made.b_dec.normal_(generator=torch.Generator().manual_seed(3))
    group, state = Group([made]), TrainingState({B: 2.0})
    loss = LocalFVU()(group, acts, group.encode(acts), None, state)
    with torch.no_grad():
        opened = ((made._input(acts) @ made.W_enc.T + made.b_enc).relu() @ made.W_dec + made.b_dec) * made.out_scale
        expected = (acts[B] - opened - made.out_center).square().sum(-1).mean() / 2
    assert loss.terms["fvu/gate"].item() == pytest.approx(expected.item(), rel=1e-5)
    names, parameters = zip(*made.named_parameters(), strict=True)
    both = dict(zip(names, torch.autograd.grad(loss.total, parameters), strict=True))
    hats = group.write([e.z for e in group.encode(acts)], acts)
    main = (acts[B] - hats[B]).square().sum(-1).mean() / 2
    alone = dict(zip(names, torch.autograd.grad(main, parameters), strict=True))
    for name in names:
        if name in ("W_dec", "b_dec", "sparsity.r_mag", "sparsity.b_mag"):
            torch.testing.assert_close(both[name], alone[name])
        else:
            assert (both[name] - alone[name]).abs().max() > 1e-3, name
    assert all(p.requires_grad for p in parameters)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_an_l1_that_means_nothing_is_refused(value):
    with pytest.raises(BadInput, match=r"l1=.*: it must be a number 0 or above"):
        ReLU(N, value)
    with pytest.raises(BadInput, match=r"l1=.*: it must be a number 0 or above"):
        Gated(torch.zeros(N), torch.zeros(N), value)


@pytest.mark.parametrize("cls", [ReLU, Gated])
def test_the_usual_l1_is_the_published_one_at_large_widths_and_level_at_small_ones(cls):
    weights = [cls.start(n_latents=4, d_out=d).l1 for d in (64, 512, 2500, 4096, 10_000)]
    assert weights == pytest.approx([0.1, 0.1, 0.1, 5 / 64, 0.05])
    assert cls.start(n_latents=4, d_out=64, l1=0.3).l1 == 0.3
