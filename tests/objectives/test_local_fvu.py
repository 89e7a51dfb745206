"""Gradients of the local loss and AuxK against finite differences; neither b_dec nor the normalisation is trivial."""

import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.objective import TrainingState
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, Transcoder
from understudy.objectives import LocalFVU
from understudy.sparsity import TopK

A, B = Site("a"), Site("b")
N, ROWS, K_AUX = 14, 9, 3
DEAD = torch.arange(N) % 3 == 0
KINDS = {"sae": (SAE, [A], [A]), "transcoder": (Transcoder, [A], [B]), "crosscoder": (Crosscoder, [A, B], [A, B])}
WIDTHS = {A: 5, B: 4}


def acts(seed=1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {s: torch.randn(ROWS, d, generator=generator).double() + 0.7 for s, d in WIDTHS.items()}


def make(kind="sae", dead=True):
    """Dead latents are pushed out of the top k, with pre-activations that are often positive all the same."""
    cls, reads, writes = KINDS[kind]
    d_in, d_out = (sum(WIDTHS[s] for s in sites) for sites in (reads, writes))
    torch.manual_seed(3)
    arrays = {
        "W_enc": torch.randn(N, d_in), "b_enc": 2 + torch.rand(N), "W_dec": torch.randn(N, d_out) / 4,
        "b_dec": torch.randn(d_out), "in_center": torch.randn(d_in), "in_scale": 0.5 + torch.rand(d_in),
        "out_center": torch.randn(d_out), "out_scale": 0.5 + torch.rand(d_out),
    }  # fmt: skip
    arrays["W_enc"][DEAD] *= 0.2
    arrays["b_enc"][DEAD] = 0.1
    arrays = {k: v.double() for k, v in arrays.items()}
    d = cls({s: WIDTHS[s] for s in reads}, {s: WIDTHS[s] for s in writes}, TopK(4), arrays)
    z = d.encode(acts()).z
    assert not z.fires()[DEAD].any(), "the dead must be dead"
    assert (d.pre(acts()).top(N).dense()[:, DEAD] > 0).any(), "AuxK must have something to use"
    state = TrainingState({s: 2.0 + i for i, s in enumerate(writes)}, [DEAD if dead else torch.zeros(N, dtype=bool)])
    return Group([d]), state


def aux_of(group, state, k_aux=K_AUX):
    encoded, x = group.encode(acts()), acts()
    errors = {s: (x[s] - hat).detach() for s, hat in group.write([e.z for e in encoded], x).items()}
    return LocalFVU(k_aux).auxiliary(group, encoded, errors, state)


def gradients(group, value) -> dict[str, torch.Tensor]:
    named = dict(group.members[0].named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(named.items(), found)}


def frozen_total(group, state, weight):
    """The loss as AuxK means it: the error it rebuilds, and the input of its encoder, are constants of the step."""
    d, x = group.members[0], acts()
    with torch.no_grad():
        hats = group.reconstruct(x)
        errors = {s: x[s] - hat for s, hat in hats.items()}
        x_in = d.pre(x).x.clone()
    objective = LocalFVU(0)

    def loss() -> float:
        main = objective(group, x, group.encode(x), None, state).total
        full = x_in @ d.W_enc.T + d.b_enc
        among = full.masked_fill(~DEAD, -torch.inf)
        chosen = torch.zeros_like(full).scatter(1, among.topk(K_AUX).indices, 1.0) * DEAD
        parts = d._split(((full.relu() * chosen) @ d.W_dec) * d.out_scale)
        spread = {s: (e - e.mean(0)).square().sum() for s, e in errors.items()}
        ratios = [(errors[s] - part).square().sum() / spread[s] for s, part in parts.items()]
        return (main + weight * torch.stack(ratios).mean()).item()

    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_main_and_aux_gradients_equal_finite_differences(kind):
    group, state = make(kind)
    weight, step = 0.5, 1e-6
    result = LocalFVU(K_AUX, weight)(group, acts(), group.encode(acts()), None, state)
    found, loss = gradients(group, result.total), frozen_total(group, state, weight)
    assert result.total.item() == pytest.approx(loss(), rel=1e-12)
    for name, parameter in group.members[0].named_parameters():
        numeric = torch.zeros_like(parameter)
        with torch.no_grad():
            for i in range(parameter.numel()):
                entry = parameter.view(-1)[i].item()
                ends = []
                for sign in (1, -1):
                    parameter.view(-1)[i] = entry + sign * step
                    ends.append(loss())
                parameter.view(-1)[i] = entry
                numeric.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(found[name], numeric, rtol=1e-5, atol=1e-7)
        if name != "b_dec":
            assert found[name][DEAD].abs().max() > 1e-4, f"dead rows of {name} must learn"
            assert found[name][~DEAD].abs().max() > 1e-4, f"live rows of {name} must learn"


@pytest.mark.parametrize("kind", KINDS)
def test_aux_reaches_dead_latents_only_and_never_b_dec(kind):
    group, state = make(kind)
    found = gradients(group, aux_of(group, state))
    assert not found.pop("b_dec").any()
    for gradient in found.values():
        assert not gradient[~DEAD].any()
        assert gradient[DEAD].abs().max() > 1e-6


def test_each_place_uses_its_k_aux_strongest_dead_latents():
    group, state = make()
    used = [int((gradients(group, aux_of(group, state, k))["W_dec"].abs().sum(-1) > 0).sum()) for k in (1, 2, 99)]
    assert used[0] <= used[1] <= used[2] <= int(DEAD.sum())
    assert aux_of(group, state, 99).item() == aux_of(group, state, int(DEAD.sum())).item()


def test_without_dead_latents_or_with_k_aux_0_it_is_off():
    for k_aux, dead in ((K_AUX, False), (0, True)):
        group, state = make(dead=dead)
        loss = LocalFVU(k_aux)(group, acts(), group.encode(acts()), None, state)
        assert set(loss.terms) == {"fvu"}
        assert loss.total.item() == float(loss.terms["fvu"])


@pytest.mark.parametrize("error", [0.0, 0.3, 1e-3], ids=["no error", "constant error", "small constant error"])
def test_a_constant_error_counts_0_and_leaves_gradients_finite(error):
    group, state = make()
    encoded = group.encode(acts())
    aux = LocalFVU(K_AUX).auxiliary(group, encoded, {A: torch.full((ROWS, 5), error).double()}, state)
    assert aux.item() == 0
    for gradient in gradients(group, aux).values():
        assert not gradient.any(), "neither NaN nor a pull"


def test_one_place_alone_trains_without_nan():
    """The last batch may hold a single place, whose error is its own mean."""
    group, state = make()
    x = {s: v[:1] for s, v in acts().items()}
    loss = LocalFVU(K_AUX)(group, x, group.encode(x), None, state)
    assert float(loss.terms["aux"]) == 0
    assert all(bool(torch.isfinite(g).all()) for g in gradients(group, loss.total).values())


def test_a_group_shares_one_error_and_each_member_brings_its_dead():
    torch.manual_seed(0)
    members = []
    for _ in range(2):
        arrays = {"W_enc": torch.randn(N, 5), "b_enc": torch.ones(N), "W_dec": torch.randn(N, 4)}
        members.append(CLTLayer({A: 5}, {B: 4}, TopK(2), {k: v.double() for k, v in arrays.items()}))
    group = Group(members, {B: torch.randn(4).double()})
    state = TrainingState({B: 3.0}, [torch.arange(N) < 4, torch.zeros(N, dtype=torch.bool)])
    encoded = group.encode(acts())
    aux = LocalFVU(2)(group, acts(), encoded, None, state)
    error = (acts()[B] - group.write([e.z for e in encoded], acts())[B]).detach()
    z = members[0].pre(acts()).top(2, torch.arange(4))
    hat = z.with_values(z.values.relu()).dense() @ members[0].W_dec
    expected = (error - hat).square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(aux.terms["aux"], expected.detach())
    state = TrainingState({B: 3.0}, [torch.zeros(N, dtype=torch.bool)] * 2)
    assert "aux" not in LocalFVU(2)(group, acts(), encoded, None, state).terms


def test_fvu_is_the_squared_error_over_the_variance_it_was_given():
    group, _ = make("crosscoder", dead=False)
    state = TrainingState({A: 2.0, B: 8.0}, [torch.zeros(N, dtype=torch.bool)])
    loss = LocalFVU()(group, acts(), group.encode(acts()), None, state)
    hats, x = group.reconstruct(acts()), acts()
    parts = [(x[s] - hats[s]).square().sum(-1).mean() / v for s, v in state.variance.items()]
    torch.testing.assert_close(loss.total, (parts[0] + parts[1]) / 2)
    assert set(loss.terms) == {"fvu", "fvu/a:out", "fvu/b:out"}
