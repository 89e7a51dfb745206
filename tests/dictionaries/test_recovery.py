"""Training finds what was planted, and a control that should not find it does not."""

from inspect import signature

import pytest
import torch

from tests.dictionaries.planted import (
    ACTIVE,
    OUT,
    SITE,
    D,
    pair,
    recovered,
    recovered_at,
    rows,
    run,
    silent_share,
    train,
    train_pair,
    trainer,
)
from understudy.core.dictionary import Group
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, SkipTranscoder, Transcoder
from understudy.dictionaries._init import unit_rows
from understudy.objectives import LocalFVU
from understudy.sparsity import BatchTopK, MultiTopK, TopK
from understudy.workflows._training.resample import Resample
from understudy.workflows._training.rules import TRAINED


def start(rule, n_latents=96, sample=None) -> SAE:
    return SAE.start([SITE], [SITE], n_latents, rule, {SITE: rows(4096, 1) if sample is None else sample}, 0)


LEAST = {  # share of a planted direction that is found, and options under which the rule is about as sparse as planted
    "topk": (0.9, {}), "batch_topk": (0.9, {}), "multi_topk": (0.9, {}), "groupmax": (0.9, {}),
    "jumprelu": (0.85, {}), "relu": (0.85, {"l1": 0.2}), "gated": (0.8, {"l1": 0.9}),
}  # fmt: skip
AT_RANDOM, AT_PLACES = 0.6, 0.75
"""More than random directions find, and more than directions of places do, where training starts."""


def rule_of(name: str, n_latents: int, k: int = ACTIVE):
    """As training starts it."""
    start = TRAINED[name].start
    offered = {"n_latents": n_latents, "d_in": D, "d_out": D, "k": k} | LEAST[name][1]
    return start(**{key: v for key, v in offered.items() if key in signature(start).parameters})


def test_every_rule_is_tried():
    """Gates of parameter components start from a network's weights: `test_components.py` tries them."""
    assert set(LEAST) | {"causal_importance"} == set(TRAINED)


@pytest.mark.parametrize("name", LEAST)
def test_an_sae_recovers_planted_features_under_every_rule(name):
    sae = start(rule_of(name, 96))
    assert recovered(sae) < AT_PLACES, "the start must not look like a success"
    train(Group([sae]))
    assert recovered(sae) >= LEAST[name][0]


def test_places_know_more_than_random_directions_and_less_than_training():
    sae = start(TopK(ACTIVE))
    known = recovered(sae)
    with torch.no_grad():
        sae.W_dec.copy_(unit_rows(96, D, torch.Generator().manual_seed(0)))
    assert recovered(sae) < AT_RANDOM < known < AT_PLACES


KINDS = {
    "transcoder": (Transcoder, [SITE], [OUT]),
    "crosscoder": (Crosscoder, [SITE, OUT], [SITE, OUT]),
    "clt": (CLTLayer, [SITE], [SITE, OUT]),
}


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_recovers_what_was_planted_at_every_site_it_writes(kind, name):
    """Widths in and out differ."""
    cls, reads, writes = KINDS[kind]
    made = cls.start(reads, writes, 96, rule_of(name, 96), pair(4096, 1), 0)
    before = [recovered_at(made, site) for site in writes]
    train_pair(cls.group([made], pair(4096, 1)))
    assert max(before) < AT_PLACES
    assert min(recovered_at(made, site) for site in writes) >= LEAST[name][0]


@torch.no_grad()
def unexplained(made, acts) -> float:
    y = acts[OUT]
    return float((y - made.reconstruct(acts)[OUT]).square().sum() / (y - y.mean(0)).square().sum())


def test_a_skip_path_takes_what_is_linear_and_leaves_the_latents_the_rest():
    """It leaves less than the best linear map, and less than as many latents without the path: both do their part.

    Its atoms are what the path misses of a feature, so they are not compared with what was planted.
    """
    acts = pair(4096, 5)
    design = torch.cat([acts[SITE], torch.ones(4096, 1)], 1)
    fitted = design @ torch.linalg.lstsq(design, acts[OUT]).solution
    linear = float((acts[OUT] - fitted).square().sum() / (acts[OUT] - acts[OUT].mean(0)).square().sum())
    left = {}
    for cls in (SkipTranscoder, Transcoder):
        made = cls.start([SITE], [OUT], 96, TopK(2), pair(4096, 1), 0)
        train_pair(Group([made]), steps=150)
        left[cls] = unexplained(made, acts)
    assert left[SkipTranscoder] < 0.8 * linear
    assert left[SkipTranscoder] < 0.8 * left[Transcoder]


def test_one_multi_topk_dictionary_serves_at_every_k():
    """Its FVU against k, beside dictionaries trained for each: one trained at the smallest k alone is worse off it."""
    held = {SITE: rows(4096, 5)}
    total = (held[SITE] - held[SITE].mean(0)).square().sum()

    @torch.no_grad()
    def fvu(sae, k):
        return float((held[SITE] - sae.with_sparsity(TopK(k)).reconstruct(held)[SITE]).square().sum() / total)

    def trained(rule):
        sae = start(rule)
        train(Group([sae]), steps=200)
        return sae

    multi, narrow, wide = trained(MultiTopK(2, {"8": 1.0})), trained(TopK(2)), trained(TopK(8))
    curve = [fvu(multi, k) for k in (1, 2, 4, 8)]
    assert curve == sorted(curve, reverse=True), "more latents never hurt"
    assert fvu(multi, 8) < 0.8 * fvu(narrow, 8)
    assert fvu(multi, 2) < 0.98 * fvu(wide, 2)
    assert fvu(multi, 2) < 1.3 * fvu(narrow, 2)
    margin = multi.with_sparsity(TopK(8)).encode(held).z.values
    assert float((margin > 0).double().mean()) > 0.95, "what is kept last is still on"


def test_shuffled_data_holds_nothing_to_recover():
    """Control: the same marginals with every coordinate shuffled on its own."""
    x = rows(8192, 1)
    shuffled = torch.stack([column[torch.randperm(len(x))] for column in x.T], 1)
    sae = start(TopK(ACTIVE), sample=shuffled)
    made = trainer(Group([sae]), steps=151)
    for i in range(150):
        made.train_step({SITE: shuffled[(i % 30) * 256 : (i % 30 + 1) * 256]})
    assert recovered(sae) < AT_RANDOM


@pytest.mark.parametrize(("cure", "low", "high"), [("none", 0.3, 1.0), ("auxk", 0.0, 0.05), ("resample", 0.0, 0.1)])
def test_latents_that_start_dead_stay_so_without_a_cure(cure, low, high):
    """40% of the latents start with a bias that keeps them out of the top k."""
    sae = start(TopK(ACTIVE), n_latents=48)
    with torch.no_grad():
        sae.b_enc[:19] = -0.8 * float(sae.W_enc[0].norm())
    made = trainer(Group([sae]), LocalFVU(16 if cure == "auxk" else 0))
    made.resample = Resample(made.dead_after, seed=0, scale=1.0) if cure == "resample" else None
    run(made)
    assert low <= silent_share(sae) < high


def test_batch_topk_thresholds_keep_l0_on_data_not_seen():
    sae = start(BatchTopK(ACTIVE))
    train(Group([sae]), steps=200)
    fitted = sae.thresholded({SITE: rows(8192, 3)})
    held_out = {SITE: rows(8192, 4)}
    l0 = fitted.encode(held_out).z.l0().double()
    assert abs(l0.mean() - ACTIVE) < 0.1 * ACTIVE
    assert l0.std() > 0.5, "places differ in how many latents they use"
    spec = fitted.spec()
    assert spec.settings["sparsity"] == {"name": "threshold"}
    assert spec.arrays["sparsity.theta"].shape == (96,)
    assert bool((spec.arrays["sparsity.theta"] > 0).any())
