"""What becomes of what is dropped: means, refits and error models, on data where the answer is known."""

import pytest
import torch

from tests.contracts.customers import customer
from tests.edits.test_graph_groups import thresholded
from understudy.baselines import NeuronBasis
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.core.site import Site
from understudy.dictionaries import Transcoder
from understudy.edits import fill_mean, low_rank, refit, restricted
from understudy.edits.low_rank import reduced_rank
from understudy.sparsity import Identity, Threshold

IN, OUT = Site("m", "in"), Site("m", "out")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def planted(n: int = 4000, noise: float = 0.0):
    """y = 3 relu(x0 - .2) u + 2 relu(x1 - .2) v + noise, and a transcoder with both latents (and a useless third) whose
    first atom is half of what it should be."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=g)
    atoms = torch.linalg.qr(torch.randn(6, 3, generator=g)).Q.T
    z = torch.stack([x[:, 0] * (x[:, 0] > 0.2), x[:, 1] * (x[:, 1] > 0.2)], 1)
    y = 3 * z[:, :1] * atoms[0] + 2 * z[:, 1:] * atoms[1] + 1 + noise * torch.randn(n, 6, generator=g)
    arrays = {"W_enc": torch.eye(5)[:3], "b_enc": torch.zeros(3), "b_dec": torch.ones(6)}
    arrays["W_dec"] = torch.stack([1.5 * atoms[0], 2 * atoms[1], 0 * atoms[2]])
    rule = Threshold(torch.full((3,), 0.2))
    dictionary = Transcoder({IN: 5}, {OUT: 6}, rule, arrays).requires_grad_(False)
    return [Group([dictionary])], {IN: x, OUT: y}, atoms


def error(groups, sample) -> float:
    hat = groups[0].reconstruct(sample)[OUT]
    return float((sample[OUT] - hat).square().sum(-1).mean())


def test_a_refit_finds_the_planted_decoder():
    groups, sample, atoms = planted()
    part = restricted(groups, {groups[0].members[0]: torch.tensor([0, 1])})
    assert error(part, sample) > 0.5
    new = refit(part, sample, ridge=1e-9)
    assert error(new, sample) < 1e-8
    found = new[0].members[0].atoms(torch.tensor([0, 1]))[OUT]
    torch.testing.assert_close(found, torch.stack([3 * atoms[0], 2 * atoms[1]]), atol=1e-3, rtol=0)
    z = new[0].members[0].encode(sample).z
    assert set(z.ids.tolist()) == {0, 1}


def test_a_refit_never_loses_on_its_own_data_and_gives_the_mean_where_nothing_is_kept():
    groups, sample, _ = planted(noise=0.3)
    for kept in ([], [0], [1], [2], [0, 1, 2]):
        part = restricted(groups, {groups[0].members[0]: torch.tensor(kept, dtype=torch.long)})
        assert error(refit(part, sample, ridge=0.1), sample) <= error(part, sample)
    nothing = refit(restricted(groups, {}), sample)
    written = nothing[0].reconstruct({IN: sample[IN][:1], OUT: sample[OUT][:1]})[OUT][0]
    torch.testing.assert_close(written, sample[OUT].mean(0), atol=1e-5, rtol=0)


def test_a_latent_that_the_sample_never_shows_keeps_its_atom():
    groups, sample, atoms = planted()
    silent = {IN: sample[IN].clone(), OUT: sample[OUT].clone()}
    silent[IN][:, 1] = -1
    new = refit(restricted(groups, {groups[0].members[0]: torch.tensor([0, 1])}), silent)
    torch.testing.assert_close(new[0].members[0].atoms(torch.tensor([1]))[OUT][0], 2 * atoms[1])


def test_a_mean_takes_the_place_of_what_it_is_the_mean_of():
    groups, sample, atoms = planted()
    member = groups[0].members[0]
    new = fill_mean(groups, {member: torch.tensor([0])}, sample)
    mean = (sample[IN][:, 1] * (sample[IN][:, 1] > 0.2)).mean()
    dropped = restricted(groups, {member: torch.tensor([0])})
    difference = new[0].reconstruct(sample)[OUT] - dropped[0].reconstruct(sample)[OUT]
    torch.testing.assert_close(difference, (2 * mean * atoms[1]).expand_as(difference), atol=1e-5, rtol=0)
    whole = groups[0].reconstruct(sample)[OUT]
    torch.testing.assert_close(new[0].reconstruct(sample)[OUT].mean(0), whole.mean(0), atol=1e-5, rtol=0)
    everything = fill_mean(groups, {member: torch.arange(3)}, sample)
    assert torch.equal(everything[0].reconstruct(sample)[OUT], whole)


def test_an_error_model_finds_a_planted_affine_error():
    groups, sample, _ = planted()
    g = torch.Generator().manual_seed(1)
    left, right = torch.randn(5, 2, generator=g), torch.randn(2, 6, generator=g)
    written = groups[0].reconstruct(sample)[OUT]
    sample[OUT] = written + sample[IN] @ left @ right + torch.arange(6.0)
    assert error(low_rank(groups, sample, 2, Identity(), ridge=1e-9), sample) < 1e-8
    assert error(low_rank(groups, sample, 1, Identity()), sample) > 0.1
    model = low_rank(groups, sample, 2, Identity())[0].members[-1]
    assert (model.kind, model.n_latents, model.reads, model.writes) == ("error_model", 2, (IN,), (OUT,))
    with pytest.raises(BadInput, match="at least 1"):
        low_rank(groups, sample, 0, Identity())


def test_reduced_rank_regression_is_the_best_of_its_rank():
    """Against many random perturbations of its own directions, and against the closed form at full rank."""
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(300, 4, generator=g).double(), torch.randn(300, 5, generator=g).double()
    y += x @ torch.randn(4, 5, generator=g).double()
    (encoder, decoder), bias = reduced_rank(x, y, 2, 0.0)
    best = (y - x @ encoder.T @ decoder - bias).square().sum()
    for _ in range(50):
        V = torch.linalg.qr(decoder.T + 0.1 * torch.randn(5, 2, generator=g).double()).Q
        W = torch.linalg.lstsq(x - x.mean(0), (y - y.mean(0)) @ V).solution
        assert best <= (y - y.mean(0) - (x - x.mean(0)) @ W @ V.T).square().sum() + 1e-9
    (encoder, decoder), bias = reduced_rank(x, y, 5, 0.0)
    full = torch.linalg.lstsq(torch.cat([x, torch.ones(300, 1).double()], 1), y).solution
    torch.testing.assert_close(encoder.T @ decoder, full[:4])


@pytest.mark.parametrize("method", ["mean", "refit", "low_rank"])
def test_a_clt_is_filled_refitted_and_modelled_as_one_group(method):
    network, groups = thresholded("clt")
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(11, (64, 6), generator=g)
    sites = (*groups[0].reads, *groups[0].writes)
    acts = network.record(type(network.example())({"tokens": tokens}), sites)
    sample = {s: v.flatten(0, -2) for s, v in acts.items()}
    kept = {m: torch.arange(0, m.n_latents, 3) for m in groups[0].members}
    part = restricted(groups, kept)
    made = {
        "mean": lambda: fill_mean(groups, kept, sample),
        "refit": lambda: refit(part, sample),
        "low_rank": lambda: low_rank(part, sample, 2, Identity()),
    }[method]()
    before, after = part[0].reconstruct(sample), made[0].reconstruct(sample)
    for site in groups[0].writes:
        missed = [(sample[site] - x[site]).square().sum() for x in (before, after)]
        if method == "mean":
            whole = groups[0].reconstruct(sample)[site]
            torch.testing.assert_close(after[site].mean(0), whole.mean(0), atol=1e-5, rtol=0)
        else:
            assert missed[1] < 0.95 * missed[0]


def test_dictionaries_that_mix_places_are_refused():
    c = customer("head")
    with pytest.raises(UnderstudyError, match="single places"):
        refit(c.groups, {})


def test_all_neurons_are_the_module_and_some_are_refitted_like_latents():
    from understudy.networks import open_network

    network = open_network("demo")
    part = next(p for p in network.parts() if p.name == "mlp.1")
    own = network.neurons(part)
    assert own is not None
    neurons = NeuronBasis(own.site, part.write, own.W, own.bias)
    acts = network.record(network.example(), [*neurons.reads, part.write])
    whole = Group([neurons])
    torch.testing.assert_close(whole.reconstruct(acts)[part.write], acts[part.write], atol=1e-5, rtol=0)
    sample = {s: v.flatten(0, -2) for s, v in acts.items()}
    ids = torch.tensor([300, 5, 17])
    some = restricted([whole], {neurons: ids})
    z = some[0].encode(sample)[0].z
    assert z.l0().tolist() == [3] * len(sample[part.write])
    by_hand = sample[neurons.reads[0]][:, ids] @ neurons.W[ids]
    torch.testing.assert_close(some[0].reconstruct(sample)[part.write], by_hand, atol=1e-5, rtol=0)
    better = refit(some, sample)[0].reconstruct(sample)[part.write]
    assert (better - sample[part.write]).square().sum() < (by_hand - sample[part.write]).square().sum()
    assert len(restricted([whole], {})[0].encode(sample)[0].z.ids) == 0
