"""JumpReLU's straight-through gradients against the published formulas, and its three penalties."""

import math

import pytest
import torch

from understudy.core.latents import Encoded, LinearPre
from understudy.core.records.errors import BadInput, UnknownName
from understudy.sparsity import JumpReLU
from understudy.sparsity._straight_through import Jump, Step

N, D, ROWS = 12, 5, 200
EPS = 0.3


def pre(scale: float = 1.0) -> LinearPre:
    g = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(*s, generator=g).double() for s in ((ROWS, D), (N, D), (N,)))
    return LinearPre(x, scale * W / D**0.5, scale * b / 4)


def theta() -> torch.Tensor:
    return (0.05 + 0.5 * torch.rand(N, generator=torch.Generator().manual_seed(1))).double()


def full(p: LinearPre) -> torch.Tensor:
    return p.x @ p.W.T + p.b


def upstream() -> torch.Tensor:
    return torch.randn(ROWS, N, generator=torch.Generator().manual_seed(2)).double()


def threshold_gradient(scale: float = 1.0) -> torch.Tensor:
    """d/d theta of sum(latents x upstream)."""
    rule = JumpReLU(scale * theta(), scale * EPS, "step")
    z = rule(pre(scale))
    (z.values * upstream()[z.rows, z.ids]).sum().backward()
    return rule.theta.grad


def test_theta_learns_from_both_sides_of_the_window_and_from_nothing_else():
    """Golden: -(theta / eps) K((p - theta) / eps) x gradient, by hand over the dense matrix of raw pre-activations."""
    p = full(pre())
    inside = (p - theta()).abs() < EPS / 2
    below, above = inside & (p < theta()), inside & (p > theta())
    assert below.sum() > 50
    assert above.sum() > 50
    expected = -(theta() / EPS) * (inside * upstream()).sum(0)
    torch.testing.assert_close(threshold_gradient(), expected)
    one_sided = -(theta() / EPS) * (above * upstream()).sum(0)
    assert (expected - one_sided).abs().max() > 0.1, "the lower half must matter here"


def test_a_threshold_below_half_the_window_is_not_moved_by_latents_that_are_merely_off():
    """A port that feeds the step what comes after it sees every latent that is off at 0, inside such a window."""
    p = LinearPre(-torch.ones(50, 1), torch.ones(1, 1), torch.zeros(1))
    rule = JumpReLU(torch.tensor([0.01]), 0.1, "step", l0_weight=1.0)
    z = rule(p)
    assert len(z.values) == 0
    rule.penalty(Encoded(z, p), lambda: torch.ones(1), None, 1.0)["sparsity"].backward()
    assert rule.theta.grad is None or not rule.theta.grad.any()


def test_pre_activations_get_the_gradient_of_what_is_kept():
    p = pre()
    p = LinearPre(p.x, p.W.requires_grad_(), p.b.requires_grad_())
    z = JumpReLU(theta(), EPS, "step")(p)
    (z.values * upstream()[z.rows, z.ids]).sum().backward()
    on = full(p) > theta()
    torch.testing.assert_close(p.b.grad, (on * upstream()).sum(0))
    torch.testing.assert_close(p.W.grad, (on * upstream()).T @ p.x)


def test_l0_is_the_count_and_its_gradient_the_formula():
    p = pre()
    rule = JumpReLU(theta(), EPS, "step", l0_weight=0.5)
    penalty = rule.penalty(Encoded(rule(p), p), lambda: torch.ones(N), None, 1.0)["sparsity"]
    on, inside = full(p) > theta(), (full(p) - theta()).abs() < EPS / 2
    assert penalty.item() == pytest.approx(0.5 * on.sum().item() / ROWS)
    penalty.backward()
    torch.testing.assert_close(rule.theta.grad, -0.5 / EPS * inside.sum(0).double() / ROWS)


def test_the_quadratic_penalty_pulls_towards_its_target_from_either_side():
    p = pre()
    l0 = float((full(p) > theta()).sum() / ROWS)
    signs = []
    for target in (l0 / 2, 2 * l0):
        rule = JumpReLU(theta(), EPS, "quadratic", target_l0=target)
        penalty = rule.penalty(Encoded(rule(p), p), lambda: torch.ones(N), None, 1.0)["sparsity"]
        assert penalty.item() == pytest.approx((l0 / target - 1) ** 2)
        penalty.backward()
        signs.append(float(rule.theta.grad.sum()))
    assert signs[0] < 0 < signs[1], "too many on: thresholds rise; too few: they fall"


@pytest.mark.parametrize("scale", [math.sqrt(D), 1 / math.sqrt(D), 30.0])
def test_theta_and_its_window_mean_the_same_in_every_unit(scale):
    """Golden: E|x|^2 = 1, mean |x| = sqrt(d) and raw units differ by a factor, which theta and eps follow: the latents
    take it too, and so does theta's gradient through them."""
    rule, other = JumpReLU(theta(), EPS, "step"), JumpReLU(scale * theta(), scale * EPS, "step")
    torch.testing.assert_close(other(pre(scale)).dense(), scale * rule(pre()).dense())
    # d(sum scale x latents) / d(scale x theta) is d(sum latents) / d theta.
    torch.testing.assert_close(threshold_gradient(scale), threshold_gradient())
    torch.testing.assert_close(rule.scaled(torch.tensor(scale)).theta, other.theta)
    assert rule.scaled(torch.tensor(scale)).bandwidth == pytest.approx(scale * EPS)


def test_outside_training_only_what_is_on_is_kept():
    rule = JumpReLU(theta(), EPS, "step")
    assert (rule(pre()).values == 0).any()
    assert (rule.eval()(pre()).values > 0).all()
    torch.testing.assert_close(rule(pre()).dense(), JumpReLU(theta(), EPS, "step")(pre()).dense())


def test_the_tanh_penalty_counts_by_length_and_saturates():
    p, length = pre(), 0.5 + torch.rand(N).double()
    rule = JumpReLU(theta(), EPS, "tanh", l0_weight=2.0, tanh_scale=4.0)
    terms = rule.penalty(Encoded(rule(p), p), lambda: length, None, 1.0)
    f = full(p) * (full(p) > theta())
    assert terms["sparsity"].item() == pytest.approx(2 * (4 * f * length).tanh().sum().item() / ROWS)
    assert set(terms) == {"sparsity"}


def test_the_pre_activation_loss_pulls_dead_latents_up_and_their_thresholds_down():
    p, length, dead = pre(), torch.ones(N).double(), torch.arange(N) < 4
    p = LinearPre(p.x, p.W, p.b.requires_grad_())
    rule = JumpReLU(theta(), EPS, "tanh", pre_act_weight=0.1)
    value = rule.penalty(Encoded(rule(p), p), lambda: length, dead, 1.0)["pre_act"]
    expected = 0.1 * (theta() - full(p)).relu()[:, :4].sum() / ROWS
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert bool((p.b.grad[:4] < 0).all())
    assert bool((rule.theta.grad[:4] > 0).all())
    assert not p.b.grad[4:].any()
    assert not rule.theta.grad[4:].any()


def test_coefficients_rise_over_their_warm_up():
    p = pre()
    rule = JumpReLU(theta(), EPS, "step", l0_weight=1.0, warmup=0.5)
    encoded = Encoded(rule(p), p)
    found = [rule.penalty(encoded, lambda: None, None, done)["sparsity"].item() for done in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx([0, found[3] / 2, found[3], found[3]])


def test_thresholds_stay_at_0_or_above():
    rule = JumpReLU(theta(), EPS, "step")
    with torch.no_grad():
        rule.theta -= 0.3
    rule.after_step()
    assert rule.theta.min() == 0


def test_the_steps_have_the_published_derivatives_entry_by_entry():
    p = torch.tensor([0.0, 0.36, 0.45, 0.55, 0.64, 0.7, 2.0], dtype=torch.double, requires_grad=True)
    t = torch.full((7,), 0.5, dtype=torch.double, requires_grad=True)
    Jump.apply(p, t, 0.3).sum().backward()
    inside = torch.tensor([0, 1, 1, 1, 1, 0, 0]).double()
    torch.testing.assert_close(t.grad, -(0.5 / 0.3) * inside)
    assert p.grad.tolist() == [0, 0, 0, 1, 1, 1, 1]
    p.grad = t.grad = None
    Step.apply(p, t, 0.3).sum().backward()
    torch.testing.assert_close(t.grad, -inside / 0.3)
    assert p.grad is None or not p.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"bandwidth": 0.0}, BadInput, "bandwidth=0.0: it must be a number above 0"),
        ({"l0_weight": -1.0}, BadInput, "l0_weight=-1.0: it must be a number 0 or above"),
        ({"l0_weight": float("nan")}, BadInput, "l0_weight=nan"),
        ({"l0_weight": float("inf")}, BadInput, "l0_weight=inf"),
        ({"target_l0": 3.0}, BadInput, "target_l0 belongs to the quadratic penalty"),
        ({"l0_penalty": "quadratic"}, BadInput, "target_l0 belongs to the quadratic penalty"),
        ({"l0_penalty": "quadratic", "target_l0": 0.0}, BadInput, "target_l0=0.0: it must be a number above 0"),
        ({"l0_penalty": "tan"}, UnknownName, "tanh"),
    ],
)
def test_coefficients_that_mean_nothing_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        JumpReLU(theta(), **({"bandwidth": EPS, "l0_penalty": "step"} | change))


def test_more_latents_than_there_are_cannot_be_aimed_at():
    with pytest.raises(BadInput, match="target_l0=13 is more than the 12 latents"):
        JumpReLU.start(n_latents=12, d_in=5, d_out=5, k=3, target_l0=13)


@pytest.mark.parametrize(("n_latents", "d", "k"), [(2048, 64, 16), (512, 192, 16), (512, 64, 128)])
def test_thresholds_start_where_random_rows_have_the_wanted_l0(n_latents, d, k):
    rule = JumpReLU.start(n_latents=n_latents, d_in=d, d_out=d, k=k)
    draw = torch.Generator().manual_seed(0)
    rows, x = (torch.nn.functional.normalize(torch.randn(n, d, generator=draw), dim=-1) for n in (n_latents, 512))
    z = rule.eval()(LinearPre(x, rows, torch.zeros(n_latents)))
    assert float(z.l0().float().mean()) == pytest.approx(k, rel=0.15)
    assert rule.bandwidth == pytest.approx(2 * d**-0.5)


def test_a_start_that_keeps_half_or_more_has_thresholds_at_zero():
    assert not JumpReLU.start(n_latents=8, d_in=5, d_out=5, k=8).theta.any()
    assert not JumpReLU.start(n_latents=8, d_in=5, d_out=5, k=4).theta.any()


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_target_that_is_no_number_of_latents_is_refused(target):
    with pytest.raises(BadInput, match="target_l0"):
        JumpReLU.start(n_latents=12, d_in=5, d_out=5, k=3, target_l0=target)
