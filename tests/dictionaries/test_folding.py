"""Folded dictionaries say the same of raw activations without any normalisation left."""

import pytest
import torch

from understudy.core.records.errors import WrongShape
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, Transcoder
from understudy.sparsity import BatchTopK, TopK

A, B, C = Site("a"), Site("b"), Site("c")
WIDTH = {A: 6, B: 4, C: 5}
N = 20
CASES = {
    "sae": (SAE, [A], [A], False),
    "transcoder": (Transcoder, [A], [B], False),
    "transcoder with skip": (Transcoder, [A], [B], True),
    "clt layer": (CLTLayer, [A], [B, C], False),
    "clt layer with skip": (CLTLayer, [A], [B, C], True),
    "crosscoder": (Crosscoder, [A, B, C], [A, B, C], False),
}


@pytest.fixture
def acts():
    """Centres, scales and widths differ between sites."""
    torch.manual_seed(0)
    return {s: (3 + i) * torch.randn(50, d).double() + 7 * i - 4 for i, (s, d) in enumerate(WIDTH.items())}


def make(case, acts, rule=None):
    kind, reads, writes, skip = CASES[case]
    made = kind.start(reads, writes, N, rule or TopK(4), {s: v.float() for s, v in acts.items()}, 0).double()
    arrays = {k: torch.randn_like(v) if k[1:].startswith("_") else v for k, v in made.arrays().items()}
    if skip:
        arrays["W_skip"] = torch.randn(made.W_enc.shape[1], made.W_dec.shape[1]).double()
    if kind is CLTLayer:
        arrays["in_center"] = arrays["in_center"] + 1
        arrays["out_center"] = torch.randn(made.W_dec.shape[1]).double()
    return made._like(arrays, made.sparsity)


@pytest.mark.parametrize("thresholds", [False, True], ids=["topk", "thresholded"])
@pytest.mark.parametrize("case", CASES)
def test_folded_equals_unfolded_on_raw_activations(case, thresholds, acts):
    dictionary = make(case, acts)
    if thresholds:
        dictionary = dictionary.thresholded(acts)
    folded = dictionary.folded()
    before, after = dictionary.reconstruct(acts), folded.reconstruct(acts)
    assert set(before) == set(dictionary.writes)
    for site in before:
        torch.testing.assert_close(after[site], before[site], rtol=1e-9, atol=1e-9)
    for name, plain in (("in_center", 0), ("out_center", 0), ("in_scale", 1), ("out_scale", 1)):
        assert not bool((getattr(dictionary, name) == plain).all()), "the case must not be trivial"
        assert bool((getattr(folded, name) == plain).all())
    assert torch.equal(folded.encode(acts).z.dense() != 0, dictionary.encode(acts).z.dense() != 0)


@pytest.mark.parametrize("case", CASES)
def test_folding_before_and_after_thresholds_agree(case, acts):
    dictionary = make(case, acts, BatchTopK(3))
    one, other = dictionary.thresholded(acts).folded(), dictionary.folded().thresholded(acts)
    torch.testing.assert_close(one.sparsity.theta, other.sparsity.theta)
    torch.testing.assert_close(one.encode(acts).z.dense(), other.encode(acts).z.dense())


@pytest.mark.parametrize("case", CASES)
def test_folding_twice_changes_nothing(case, acts):
    once = make(case, acts).folded()
    for name, array in once.folded().arrays().items():
        torch.testing.assert_close(array, once.arrays()[name], rtol=0, atol=0)


def test_a_folded_sae_keeps_its_unit_rows(acts):
    sae = SAE.start([A], [A], N, TopK(4), {A: acts[A].float()}, 0)
    torch.testing.assert_close(sae.folded().W_dec.norm(dim=-1), torch.ones(N))


def test_an_sae_whose_sides_differ_is_not_folded_into_something_else(acts):
    sae = make("sae", acts)
    for name in ("out_scale", "out_center", "in_scale"):
        arrays = sae.arrays()
        arrays[name] = arrays[name] + torch.arange(6).double()
        with pytest.raises(WrongShape, match="one center and one scale"):
            sae._like(arrays, sae.sparsity).folded()
