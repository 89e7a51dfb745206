"""What every rule of the shelf promises, whatever it is."""

import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.latents import LinearPre
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.core.site import Site
from understudy.dictionaries import SAE, Transcoder
from understudy.sparsity import TopK
from understudy.workflows._runs import load_groups, save_groups, save_weights
from understudy.workflows._training.rules import RULES, TRAINED

N, D, K = 24, 6, 3
A, B = Site("a"), Site("b")
MODES = {name: {} for name in TRAINED} | {
    "jumprelu, step": {"l0_penalty": "step", "l0_weight": 0.01},
    "jumprelu, tanh": {"l0_penalty": "tanh"},
}
GATED_BY_SIZE = {"causal_importance"}
"""Signed latents with gates that are no thresholds: such a rule is its own end."""


def rule(mode: str, n: int = N):
    """The rule as training starts it, with arrays that are not what they start as."""
    cls = TRAINED[mode.partition(",")[0]]
    offered = {"n_latents": n, "d_in": D, "d_out": D, "k": K} | MODES[mode]
    names = cls.start.__code__.co_varnames[1 : cls.start.__code__.co_argcount]
    made = cls.start(**{k: v for k, v in offered.items() if k in names})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.copy_(0.05 + 0.4 * torch.rand(tensor.shape, generator=generator))
    return made


def acts(n: int = 80, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {s: torch.randn(n, D, generator=generator) + i for i, s in enumerate((A, B))}


def transcoder(mode: str) -> Transcoder:
    made = Transcoder.start([A], [B], N, rule(mode), acts(), 0)
    with torch.no_grad():
        made.W_dec.normal_(generator=torch.Generator().manual_seed(1))
        made.b_enc.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return made


def pre() -> LinearPre:
    g = torch.Generator().manual_seed(3)
    return LinearPre(*(torch.randn(*shape, generator=g) for shape in ((40, D), (N, D), (N,))))


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_same_after_a_round_trip_through_a_run_folder(mode, tmp_path):
    before, folder = Group([transcoder(mode)]), RunFolder(tmp_path)
    save_weights(folder, [before])
    save_groups(folder, [before])
    (after,) = load_groups(folder)
    one, other = before.members[0].sparsity, after.members[0].sparsity
    assert type(one) is type(other)
    assert one.settings() == other.settings()
    assert one.settings()["name"] == type(one).name
    assert {k: v.tolist() for k, v in one.state_dict().items()} == {
        k: v.tolist() for k, v in other.state_dict().items()
    }
    before.eval()
    assert torch.equal(before.reconstruct(acts())[B], after.reconstruct(acts())[B])


@pytest.mark.parametrize("mode", MODES)
def test_thresholds_say_the_same_where_latents_do_not_compete_and_as_often_where_they_do(mode):
    made = transcoder(mode)
    competes = not made.sparsity.is_thresholded
    fitted = made.thresholded(acts())
    assert fitted.sparsity.name == (made.sparsity.name if mode in GATED_BY_SIZE else "threshold")
    assert torch.equal(fitted.encode(acts()).z.fires(), made.encode(acts()).z.fires())
    assert fitted.thresholded(acts()) is fitted
    if not competes:
        new = acts(50, seed=9)
        torch.testing.assert_close(fitted.encode(new).z.dense(), made.encode(new).z.dense())
        torch.testing.assert_close(fitted.reconstruct(new)[B], made.reconstruct(new)[B])


@pytest.mark.parametrize("mode", MODES)
def test_some_latents_alone_are_what_they_were_or_are_refused(mode):
    made, ids = transcoder(mode).eval(), torch.tensor([20, 3, 7])
    if not made.sparsity.is_thresholded:
        with pytest.raises(UnderstudyError, match="lets latents compete"):
            made.restrict(ids)
        made = made.thresholded(acts())
    kept = made.encode(acts()).z.keep(torch.isin(torch.arange(N), ids))
    part = made.restrict(ids)
    torch.testing.assert_close(part.encode(acts()).z.dense(), kept.dense())
    assert part.part.n_latents == 3
    if mode not in GATED_BY_SIZE:
        assert len(part.part.thresholded(acts()).sparsity.theta) == 3


@pytest.mark.parametrize("factor", [0.01, 7.0])
@pytest.mark.parametrize("mode", MODES)
def test_in_other_units_it_keeps_the_same_latents(mode, factor):
    """Pre-activations times s give latents times s: what folding an SAE's scale rests on."""
    for training in (True, False):
        one = rule(mode).train(training)
        s, p = torch.tensor(factor), pre()
        scaled = one.scaled(s).train(training)
        with torch.no_grad():
            a, b = one(p).dense(), scaled(LinearPre(p.x, s * p.W, s * p.b)).dense()
        torch.testing.assert_close(b, s * a)


@pytest.mark.parametrize("mode", MODES)
def test_a_folded_sae_writes_what_it_wrote(mode):
    x = {A: 3 * acts()[A] + 5}
    sae = SAE.start([A], [A], N, rule(mode), x, 0).eval()
    torch.testing.assert_close(sae.folded().reconstruct(x)[A], sae.reconstruct(x)[A], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_values_have_the_sign_they_should_and_gradients_reach_every_parameter(mode):
    made, p = rule(mode), pre()
    p = LinearPre(p.x, p.W.requires_grad_(), p.b.requires_grad_())
    z = made(p)
    assert bool((z.values >= 0).all()) == (mode not in GATED_BY_SIZE)
    z.values.square().sum().backward()
    assert bool(p.W.grad.any())
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_rules_that_training_ends_in_cannot_start_it():
    for name in set(RULES) - set(TRAINED):
        with pytest.raises(BadInput, match="not a rule to train with"):
            RULES[name].start()
    assert TopK.name in TRAINED


def test_names_are_their_own():
    assert len(RULES) == 10
    assert all(cls.name == name for name, cls in RULES.items())
