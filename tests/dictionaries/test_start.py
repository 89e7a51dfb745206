"""Where training starts, and the constraints it keeps."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import normalize

from tests.dictionaries.planted import SITE, rows, trainer
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadActivations
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, Transcoder, clt_group
from understudy.dictionaries._init import geometric_median, spread
from understudy.sparsity import BatchTopK, ReLU, TopK

A, B = Site("a"), Site("b")
KINDS = {"sae": ([A], [A]), "transcoder": ([A], [B]), "crosscoder": ([A, B], [A, B]), "clt": ([A], [A, B])}
CLASSES = {c.kind: c for c in (SAE, Transcoder, Crosscoder, CLTLayer)}


def sample() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {A: 3 * torch.randn(200, 6, generator=generator) + 5, B: torch.randn(200, 4, generator=generator) - 2}


def start(kind, acts, seed=0):
    return CLASSES[kind].start(*KINDS[kind], 24, TopK(4), acts, seed)


def test_geometric_median_of_a_line_and_with_an_outlier():
    assert geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).item() == pytest.approx(1, abs=1e-3)
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(geometric_median(square), torch.ones(2))


@pytest.mark.parametrize("kind", ["sae", "crosscoder"])
def test_centred_input_of_unit_mean_square_norm_is_what_is_encoded(kind):
    acts = sample()
    made = start(kind, acts)
    x = made._input(acts)
    for part in x.split(made.d_reads, -1):
        assert part.square().sum(-1).mean() == pytest.approx(1, abs=1e-3)
        assert part.mean(0).norm() < 0.1


def test_an_sae_starts_at_places_with_parallel_rows_and_writes_the_median():
    acts = sample()
    sae = start("sae", acts)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(24))
    torch.testing.assert_close(normalize(sae.W_enc, dim=-1), sae.W_dec.detach())
    torch.testing.assert_close(sae.rest(acts)[A][0], geometric_median(acts[A]))
    cosines = normalize(sae.pre(acts).x, dim=-1) @ sae.W_dec.T
    assert bool((cosines.amax(0) > 0.9).all())


def test_each_latent_of_a_transcoder_starts_at_one_place_on_both_sides():
    acts = sample()
    made = start("transcoder", acts)
    reads = normalize(made._input(acts), dim=-1) @ normalize(made.W_enc, dim=-1).T
    writes = normalize((acts[B] - made.out_center) / made.out_scale, dim=-1) @ made.W_dec.T
    place = reads.argmax(0)
    assert bool((reads[place, range(24)] > 0.9).all())
    assert bool((writes[place, range(24)] > 0.8).all())


@pytest.mark.parametrize("kind", ["sae", "transcoder", "crosscoder"])
@pytest.mark.parametrize("rule", [TopK(4), BatchTopK(4), ReLU(0.1)], ids=lambda r: r.name)
def test_no_other_scale_of_the_encoder_fits_better_at_first(kind, rule):
    acts = sample()
    made = CLASSES[kind].start(*KINDS[kind], 24, deepcopy(rule), acts, 0)

    @torch.no_grad()
    def error(factor: float) -> float:
        scaled = made._like(made.arrays() | {"W_enc": factor * made.W_enc}, deepcopy(rule))
        return sum(float((acts[s] - hat).square().sum()) for s, hat in scaled.reconstruct(acts).items())

    assert error(1) < min(error(0.8), error(1.25))


def test_starting_leaves_the_rule_as_it_was():
    """BatchTopK counts the cuts of its batches: those of the start are not of the run."""
    rule = BatchTopK(4)
    before = deepcopy(rule.state_dict())
    start_with = CLASSES["sae"].start(*KINDS["sae"], 24, rule, sample(), 0)
    assert all(torch.equal(v, before[k]) for k, v in start_with.sparsity.state_dict().items())


def test_places_are_spread_over_directions_however_often_each_comes():
    """Ten directions, of which one is at 99% of the places: drawn evenly, most of them would be missed."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.where(
        torch.rand(4000, generator=generator) < 0.99, 0, torch.randint(1, 10, (4000,), generator=generator)
    )
    x = torch.eye(10)[kinds] * (1 + torch.rand(4000, 1, generator=generator))
    found = kinds[spread(x, 32, generator)]
    assert len(found.unique()) == 10
    assert len(kinds[torch.randperm(4000, generator=generator)[:32]].unique()) < 6


def test_more_latents_than_places_all_start_somewhere_else():
    acts = {A: torch.randn(10, 6, generator=torch.Generator().manual_seed(0))}
    sae = SAE.start([A], [A], 64, TopK(4), acts, 0)
    cosines = (sae.W_dec @ sae.W_dec.T).detach().fill_diagonal_(0)
    assert float(cosines.max()) < 0.9999


def test_a_layer_of_a_clt_starts_as_a_transcoder_of_its_own_output_and_leaves_later_ones_alone():
    """At their medians: layers that each wrote the whole of every output would sum to several times it."""
    acts = sample()
    made, alone = start("clt", acts), Transcoder.start([A], [A], 24, TopK(4), acts, 0)
    group = clt_group([made], acts)
    torch.testing.assert_close(group.reconstruct(acts)[A], alone.reconstruct(acts)[A])
    torch.testing.assert_close(group.reconstruct(acts)[B], geometric_median(acts[B]).expand_as(acts[B]))
    assert (acts[A] - alone.reconstruct(acts)[A]).square().sum() < (acts[A] - acts[A].mean(0)).square().sum()


@pytest.mark.parametrize("kind", CLASSES)
def test_the_seed_decides_the_start(kind):
    acts = sample()
    assert torch.equal(start(kind, acts).W_enc, start(kind, acts).W_enc)
    assert not torch.equal(start(kind, acts).W_enc, start(kind, acts, seed=1).W_enc)


@pytest.mark.parametrize("kind", CLASSES)
def test_activations_that_cannot_be_learned_from_are_refused_with_their_site(kind):
    acts = sample()
    constant, infinite = acts[A] * 0 + 3, acts[A] / 0
    for broken, message in (
        (constant, "a:out is constant on the first 200 places"),
        (infinite, "a:out holds NaN or inf"),
    ):
        with pytest.raises(BadActivations, match=message):
            start(kind, acts | {A: broken})


def test_decoder_rows_have_length_1_after_every_step_and_gradients_lie_across_them():
    sae = SAE.start([SITE], [SITE], 48, TopK(4), {SITE: rows(1000, 1)}, 0)
    made, across = trainer(Group([sae]), steps=20), []
    project = sae.before_step

    @torch.no_grad()
    def watched() -> None:
        project()
        along = (sae.W_dec.grad * sae.W_dec).sum(-1).abs()
        across.append(float((along / sae.W_dec.grad.norm(dim=-1).clamp(min=1e-9)).max()))

    sae.before_step = watched
    for i in range(5):
        before = sae.W_dec.detach().clone()
        made.train_step({SITE: rows(128, i)})
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48), rtol=0, atol=3e-7)
        assert not torch.equal(before, sae.W_dec)
    assert max(across) < 1e-5
    made.use_averages()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48), rtol=0, atol=3e-7)


def test_a_transcoders_decoder_is_free():
    transcoder = Transcoder.start([SITE], [SITE], 48, TopK(4), {SITE: rows(1000, 1)}, 0)
    made = trainer(Group([transcoder]), steps=20)
    for i in range(20):
        made.train_step({SITE: rows(128, i)})
    assert (transcoder.W_dec.norm(dim=-1) - 1).abs().max() > 0.1
