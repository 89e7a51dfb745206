"""Gates: their two squashings, what they cost, and what is kept."""

import pytest
import torch

from understudy.core.latents import LinearPre
from understudy.core.records.errors import BadInput
from understudy.sparsity.causal_importance import LEAK, CausalImportance, lower, upper

Z = torch.tensor([-2.0, 0.0, 0.4, 1.0, 1.5])


def gradient(squash, wanted: float) -> list[float]:
    z = Z.clone().requires_grad_()
    (wanted * squash(z)).sum().backward()
    return z.grad.tolist()


def test_what_masks_read_is_clamped_and_a_closed_gate_hears_only_of_opening():
    torch.testing.assert_close(lower(Z), torch.tensor([0.0, 0.0, 0.4, 1.0, 1.0]))
    assert gradient(lower, 1.0) == [0.0, 0.0, 1.0, 1.0, 0.0]
    torch.testing.assert_close(gradient(lower, -1.0), [-LEAK, -LEAK, -1.0, -1.0, 0.0])


def test_what_the_price_reads_leaks_above_one_and_rewards_nothing_below_zero():
    torch.testing.assert_close(upper(Z), torch.tensor([0.0, 0.0, 0.4, 1.0, 1 + 0.5 * LEAK]))
    found = gradient(upper, 1.0)
    assert (found[0], found[2]) == (0.0, 1.0)
    assert found[4] == pytest.approx(LEAK)


def fixed(raw: list[float], **options) -> CausalImportance:
    """Gates that are what is said whatever they read."""
    rule = CausalImportance(len(raw), **options)
    with torch.no_grad():
        rule.w_out.zero_()
        rule.b_out.copy_(torch.tensor(raw))
    return rule


def pre(n: int = 3, rows: int = 4) -> LinearPre:
    g = torch.Generator().manual_seed(0)
    return LinearPre(torch.randn(rows, 5, generator=g), torch.randn(n, 5, generator=g), torch.zeros(n))


def test_closed_gates_are_not_kept_and_open_ones_scale_the_value():
    p = pre()
    z = fixed([-1.0, 0.5, 2.0])(p)
    h = p.x @ p.W.T
    torch.testing.assert_close(z.dense(), h * torch.tensor([0.0, 0.5, 1.0]))
    assert z.l0().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(("p", "cost"), [(1.0, 1.75), (2.0, 1.3125)])
def test_the_price_is_the_mean_over_places_of_the_sum_of_powers(p, cost):
    """Gates 0, 0.25, 0.5 and 1."""
    rule = fixed([-1.0, 0.25, 0.5, 1.0], importance=0.1, p=p)
    gates, price = rule.importances(pre(4))
    assert gates.shape == (4, 4)
    assert price.item() == pytest.approx(0.1 * cost, rel=1e-5)
    encoded = rule(pre(4))
    assert encoded.n_latents == 4


def test_a_one_sided_gate_is_closed_where_the_inner_product_is_negative():
    p = pre()
    h = p.x @ p.W.T
    z = fixed([1.0, 1.0, 1.0], one_sided=True)(p)
    torch.testing.assert_close(z.dense(), h.relu())
    both = fixed([1.0, 1.0, 1.0])(p)
    torch.testing.assert_close(both.dense(), h)


def test_looked_at_without_gradients_in_blocks_it_is_the_same(monkeypatch):
    rule, p = CausalImportance(3), pre(rows=50)
    with torch.no_grad():
        rule.w_out.mul_(3)
    whole = rule(p)
    monkeypatch.setattr("understudy.sparsity.causal_importance._HELD", 3 * 16 * 7)
    with torch.no_grad():
        blocks = rule(p)
    torch.testing.assert_close(whole.dense(), blocks.dense())
    assert 0 < len(blocks.values) < 150


def test_the_same_seed_draws_the_same_gates_and_another_does_not():
    rules = [CausalImportance(3) for _ in range(3)]
    for rule, seed in zip(rules, (1, 1, 2), strict=True):
        rule.draw(torch.Generator().manual_seed(seed))
    assert torch.equal(rules[0].w_in, rules[1].w_in)
    assert not torch.equal(rules[0].w_in, rules[2].w_in)


@pytest.mark.parametrize("options", [{"importance": -1.0}, {"importance": float("nan")}, {"p": 0.0}])
def test_prices_that_are_none_are_refused(options):
    with pytest.raises(BadInput, match="it must be a number"):
        CausalImportance(3, **options)
