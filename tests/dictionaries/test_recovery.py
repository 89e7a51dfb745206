"""Training finds what was planted, and a control that should not find it does not."""

import pytest
import torch

from tests.dictionaries.planted import ACTIVE, SITE, recovered, rows, silent_share, train
from understudy.core.dictionary import Group
from understudy.dictionaries import SAE, Transcoder
from understudy.objectives import LocalFVU
from understudy.sparsity import BatchTopK, TopK


def start(rule, n_latents=96, kind=SAE) -> SAE:
    return kind.start([SITE], [SITE], n_latents, rule, {SITE: rows(4096, 1)}, 0)


@pytest.mark.parametrize("rule", [TopK, BatchTopK])
def test_an_sae_recovers_planted_features(rule):
    sae = start(rule(ACTIVE))
    assert recovered(sae) < 0.6, "random directions must not look like a success"
    train(Group([sae]))
    assert recovered(sae) >= 0.9


def test_a_transcoder_recovers_planted_features():
    """Its decoder starts at 0, so nothing of the answer comes from a tied start."""
    transcoder = start(TopK(ACTIVE), kind=Transcoder)
    train(Group([transcoder]))
    assert recovered(transcoder) >= 0.9


def test_shuffled_data_holds_nothing_to_recover():
    """Control: the same marginals with every coordinate shuffled on its own."""
    x = rows(8192, 1)
    shuffled = torch.stack([column[torch.randperm(len(x))] for column in x.T], 1)
    sae = start(TopK(ACTIVE))
    made = train(Group([sae]), steps=1)
    for i in range(150):
        made.train_step({SITE: shuffled[(i % 30) * 256 : (i % 30 + 1) * 256]})
    assert recovered(sae) < 0.6


@pytest.mark.parametrize(("k_aux", "low", "high"), [(0, 0.3, 1.0), (16, 0.0, 0.05)], ids=["without", "with AuxK"])
def test_auxk_revives_latents_that_start_dead(k_aux, low, high):
    """40% of the latents start with a bias that keeps them out of the top k."""
    sae = start(TopK(ACTIVE), n_latents=48)
    with torch.no_grad():
        sae.b_enc[:19] = -0.6
    train(Group([sae]), LocalFVU(k_aux))
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
