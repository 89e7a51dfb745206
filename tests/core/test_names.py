"""find_sites and find_parts on a Llama of 12 layers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from understudy.core.names import find_parts, find_sites, short_name
from understudy.core.records.errors import UnknownName
from understudy.core.site import Site
from understudy.networks import HFCausalLM


@pytest.fixture(scope="module")
def llama() -> HFCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 31}
    return HFCausalLM(LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=12)), "llama")


def layers(port: str, *which: int) -> tuple[Site, ...]:
    return tuple(Site.parse(f"model.layers.{i}{port}") for i in which)


@pytest.mark.parametrize(
    ("pattern", "sites"),
    [
        ("embed", layers(":in", 0)),
        ("resid", layers(":out", *range(12))),
        ("resid.*", layers(":out", *range(12))),
        ("resid.1", layers(":out", 1)),
        ("resid.1?", layers(":out", 10, 11)),
        ("mlp_out.[02]", layers(".mlp:out", 0, 2)),
        ("mlp", layers(".mlp:out", *range(12))),
        ("mlp.3", layers(".mlp:out", 3)),
        ("mlp_in.3", layers(".mlp:in", 3)),
        ("resid.5, resid.2 ,resid.5", layers(":out", 2, 5)),
        (["mlp_out.0", "attn_out.0"], (*layers(".self_attn:out", 0), *layers(".mlp:out", 0))),
        ("model.layers.3.mlp", layers(".mlp:out", 3)),
        ("model.layers.3.mlp:in", layers(".mlp:in", 3)),
        ("model.layers.[34].mlp.down_proj:in", layers(".mlp.down_proj:in", 3, 4)),
        ("model.norm:out#0", (Site("model.norm", "out", 0),)),
        (Site("model.norm"), (Site("model.norm"),)),
        ("inputs:input_ids", (Site("inputs", "input_ids"),)),
        ("blocks.3.hook_resid_post", layers(":out", 3)),
        ("blocks.3.hook_resid_pre", layers(":out", 2)),
        ("blocks.0.hook_resid_pre", layers(":in", 0)),
        ("blocks.3.hook_mlp_out", layers(".mlp:out", 3)),
        ("blocks.*.hook_attn_out", layers(".self_attn:out", *range(12))),
        ("blocks.3.mlp.hook_in", layers(".mlp:in", 3)),
        ("blocks.3.mlp.hook_post", layers(".mlp.down_proj:in", 3)),
        ("hook_embed", layers(":in", 0)),
    ],
)  # fmt: skip
def test_patterns(llama: HFCausalLM, pattern, sites: tuple[Site, ...]):
    assert find_sites(llama, pattern) == sites


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mpl_out.3", r"'mpl_out.3' is not a known site of llama. Did you mean mlp_out.3"),
        ("resid.44", r"not a known site of llama. Did you mean resid.4"),
        ("model.layers.3.mpl:out", r"Did you mean model.layers.3.mlp"),
        ("inputs:inptu_ids", r"Did you mean inputs:input_ids"),
        ("model.norm:middle", r"Ports start with 'in' or 'out'"),
        ("blocks.3.attn.hook_pattern", r"cannot be translated for llama: it lies inside a module"),
        ("blocks.3.hook_resid_mid", r"cannot be translated"),
        ("blocks.12.hook_resid_post", r"its blocks are 0 to 11"),
        ("hook_pos_embed", r"cannot be translated"),
    ],
)
def test_unknown_names_teach(llama: HFCausalLM, pattern: str, message: str):
    with pytest.raises(UnknownName, match=message):
        find_sites(llama, pattern)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("mlp.3", ["mlp.3"]),
        ("mlp.1?", ["mlp.10", "mlp.11"]),
        ("mlp.1,attn.0", ["attn.0", "mlp.1"]),
        ("model.layers.3.mlp", ["mlp.3"]),
        ("attn", [f"attn.{i}" for i in range(12)]),
    ],
)
def test_parts(llama: HFCausalLM, pattern: str, names: list[str]):
    assert [p.name for p in find_parts(llama, pattern)] == names


def test_a_site_is_no_part_and_the_message_says_which(llama: HFCausalLM):
    with pytest.raises(UnknownName, match=r"'mlp_out.3' is a site of llama, not a part.*say 'mlp.3'"):
        find_parts(llama, "mlp_out.3")
    with pytest.raises(UnknownName, match=r"'resid.3' is not a known part of llama"):
        find_parts(llama, "resid.3")


def test_names_go_both_ways(llama: HFCausalLM):
    for row in llama.named_sites():
        assert find_sites(llama, row.name) == (row.site,)
        assert short_name(llama, row.site) == row.name
    assert short_name(llama, Site("model.norm")) == "model.norm:out"


def test_named_sites_are_in_the_order_of_the_forward_pass(llama: HFCausalLM):
    order = []
    edits = {row.site: lambda v, call, s=row.site: (order.append(s), v)[1] for row in llama.named_sites()}
    with llama.edited(edits), torch.no_grad():
        llama(llama.example())
    assert order == [row.site for row in llama.named_sites()]
