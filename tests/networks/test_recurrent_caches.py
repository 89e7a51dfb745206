"""Recurrent models of transformers: their caches hold states, not places, and generation counts the places itself."""

import pytest
import torch
import transformers as t

from understudy import Group, Replacement, find_sites
from understudy.baselines import Constant
from understudy.networks import HFCausalLM

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2,
         "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip


def mamba2() -> HFCausalLM:
    torch.manual_seed(0)
    config = t.Mamba2Config(**SIZES, num_heads=2, head_dim=16, n_groups=1, chunk_size=4, tie_word_embeddings=True)
    return HFCausalLM(t.Mamba2ForCausalLM(config), "mamba2")


def mamba() -> HFCausalLM:
    torch.manual_seed(0)
    return HFCausalLM(t.MambaForCausalLM(t.MambaConfig(**SIZES)), "mamba")


@pytest.mark.parametrize("make", [mamba2, mamba])
def test_only_the_first_place_of_a_generated_text_is_left_out(make):
    """Token by token from whole passes without a cache gives the same text, under a replacement that skips a place."""
    network = make()
    prompts = torch.randint(1, 31, (3, 5), generator=torch.Generator().manual_seed(1))
    (site,) = find_sites(network, "mixer_out.1")
    big = Constant(site, 3 * torch.randn(16, generator=torch.Generator().manual_seed(2)))
    replacement = Replacement(network, [Group([big])], skip_first=1)
    with replacement.installed():
        found = network.generate(prompts, 6, seed=3)
    assert network.n_before({"cache_params": object()}) == 0, "outside of generation nothing is counted"
    with replacement.installed(), torch.no_grad():
        torch.manual_seed(3)
        text = prompts
        for _ in range(6):
            last = network.module(input_ids=text, use_cache=False).logits[:, -1].clone()
            last[:, 0] = -torch.inf
            text = torch.cat([text, torch.multinomial(last.softmax(-1), 1)], 1)
    assert torch.equal(found, text)
    plain = network.generate(prompts, 6, seed=3)
    assert not torch.equal(found, plain)
