"""Where training starts, and the constraints it keeps."""

import pytest
import torch

from tests.dictionaries.planted import SITE, rows, trainer
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadActivations
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, Transcoder, clt_group
from understudy.dictionaries._init import geometric_median
from understudy.sparsity import TopK

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


def test_an_sae_starts_tied_with_unit_rows_and_writes_the_median():
    acts = sample()
    sae = start("sae", acts)
    assert torch.equal(sae.W_enc, sae.W_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(24))
    torch.testing.assert_close(sae.rest(acts)[A][0], geometric_median(acts[A]))


@pytest.mark.parametrize("kind", ["transcoder", "clt"])
def test_a_decoder_that_starts_at_0_writes_the_outputs_median_alone(kind):
    acts = sample()
    made = start(kind, acts)
    group = clt_group([made], acts) if kind == "clt" else Group([made])
    for site, value in group.reconstruct(acts).items():
        torch.testing.assert_close(value[3], geometric_median(acts[site]))


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
    for i in range(5):
        made.train_step({SITE: rows(128, i)})
    assert (transcoder.W_dec.norm(dim=-1) - 1).abs().max() > 0.1
