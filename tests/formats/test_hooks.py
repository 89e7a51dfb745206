"""Hook names of others on the families of transformers: each against the activation computed by hand."""

import pytest
import torch
import transformers

from understudy.core.records.errors import UnknownName
from understudy.core.site import Site
from understudy.formats.hooks import name, place
from understudy.networks import HFCausalLM

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SMALL | {"intermediate_size": 40}


def network(family: str) -> HFCausalLM:
    torch.manual_seed(0)
    t = transformers
    config = {
        "gpt2": lambda: t.GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=2, n_positions=64),
        "llama": lambda: t.LlamaConfig(**WIDE, num_key_value_heads=1),
        "gemma2": lambda: t.Gemma2Config(**WIDE, num_key_value_heads=1, head_dim=8),
        "pythia": lambda: t.GPTNeoXConfig(**WIDE),
    }[family]()
    model = t.AutoModelForCausalLM.from_config(config)
    for n, p in model.named_parameters():
        if "norm" in n or "ln_" in n:
            p.data += 0.3 * torch.rand_like(p)
    return HFCausalLM(model, family)


@pytest.fixture(scope="module")
def networks():
    return {family: network(family) for family in ("gpt2", "llama", "gemma2", "pythia")}


SITES = {
    ("gpt2", "blocks.1.hook_resid_post"): "transformer.h.1:out",
    ("gpt2", "blocks.1.hook_resid_pre"): "transformer.h.0:out",
    ("gpt2", "blocks.1.hook_resid_mid"): "transformer.h.1.ln_2:in",
    ("gpt2", "blocks.1.hook_mlp_in"): "transformer.h.1.ln_2:in",
    ("gpt2", "blocks.1.attn.hook_z"): "transformer.h.1.attn.c_proj:in",
    ("gpt2", "h.1.mlp"): "transformer.h.1.mlp:out",
    ("llama", "blocks.0.hook_mlp_out"): "model.layers.0.mlp:out",
    ("llama", "blocks.0.mlp.hook_in"): "model.layers.0.mlp:in",
    ("llama", "blocks.0.hook_resid_mid"): "model.layers.0.post_attention_layernorm:in",
    ("llama", "blocks.1.attn.hook_z"): "model.layers.1.self_attn.o_proj:in",
    ("llama", "layers.1.mlp:in"): "model.layers.1.mlp:in",
    ("llama", "model.layers.1.self_attn.o_proj.input"): "model.layers.1.self_attn.o_proj:in",
    ("gemma2", "blocks.1.hook_mlp_out"): "model.layers.1.post_feedforward_layernorm:out",
    ("gemma2", "blocks.1.hook_resid_mid"): "model.layers.1.pre_feedforward_layernorm:in",
    ("gemma2", "model.layers.1.pre_feedforward_layernorm.output"): "model.layers.1.pre_feedforward_layernorm:out",
    ("gemma2", "model.layers.1.output"): "model.layers.1:out",
    ("pythia", "blocks.1.hook_mlp_out"): "gpt_neox.layers.1.mlp:out",
    ("pythia", "blocks.1.attn.hook_z"): "gpt_neox.layers.1.attention.dense:in",
    ("pythia", "layers.1.mlp"): "gpt_neox.layers.1.mlp:out",
}  # fmt: skip


@pytest.mark.parametrize(("family", "hook"), SITES)
def test_a_hook_is_the_site_it_names(networks, family, hook):
    found = place(networks[family], hook)
    assert str(found.site) == SITES[family, hook]
    assert found.scale is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "pythia"])
def test_the_normalised_input_is_the_norms_output_without_its_gain(networks, family):
    """Known answer: x less its mean (LayerNorm), over its root mean square; the gain was made to matter."""
    net = networks[family]
    found = place(net, "blocks.1.ln2.hook_normalized")
    values = net.record(net.example(), [found.site, Site(found.site.module, "in")])
    x = values[Site(found.site.module, "in")]
    h = x - x.mean(-1, keepdim=True) if family in ("gpt2", "pythia") else x
    eps = 1e-5 if family in ("gpt2", "pythia") else net.config.rms_norm_eps
    wanted = h / (h.square().mean(-1, keepdim=True) + eps).sqrt()
    got = (values[found.site] - found.center) / found.scale
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert found.scale.std() > 0.05


def test_heads_side_by_side_make_what_attention_writes(networks):
    net = networks["llama"]
    site = place(net, "blocks.0.attn.hook_z").site
    out = Site("model.layers.0.self_attn")
    values = net.record(net.example(), [site, out])
    weight = net.module.get_submodule(site.module).weight
    torch.testing.assert_close(values[site] @ weight.T, values[out], atol=1e-5, rtol=1e-4)


def test_the_stream_between_attention_and_mlp_is_their_sum(networks):
    net = networks["llama"]
    sites = [Site("model.layers.0", "in"), Site("model.layers.0.self_attn"), place(net, "blocks.0.hook_resid_mid").site]
    before, attention, between = (net.record(net.example(), sites)[s] for s in sites)
    torch.testing.assert_close(before + attention, between)


@pytest.mark.parametrize(
    ("family", "hook", "says"),
    [
        ("pythia", "blocks.0.hook_resid_mid", "side by side"),
        ("llama", "blocks.7.hook_resid_mid", "no part mlp.7"),
        ("llama", "blocks.7.hook_resid_post", "its blocks are 0 to 1"),
        ("llama", "blocks.0.attn.hook_pattern", "no hook reaches"),
        ("llama", "layers.9.mlp", "layers"),
        ("llama", "model.layers.1.mpl.output", "model.layers.1.mlp"),
    ],
)
def test_what_cannot_be_translated_says_why(networks, family, hook, says):
    with pytest.raises(UnknownName, match=says):
        place(networks[family], hook)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "pythia"])
def test_names_come_back(networks, family):
    """Every site with a short name that has a TransformerLens name is found again under it."""
    net = networks[family]
    named = [row for row in net.named_sites() if row.name.rpartition(".")[0] != "token_embed"]
    for row in named:
        if row.name in ("embed", "token_embed"):
            continue
        assert place(net, name(net, row.site)).site == row.site
    heads = place(net, "blocks.1.attn.hook_z").site
    assert name(net, heads) == "blocks.1.attn.hook_z"


def test_a_site_without_a_name_is_refused_with_the_nearest(networks):
    with pytest.raises(UnknownName, match="TransformerLens name"):
        name(networks["llama"], Site("model.layers.0.mlp.gate_proj"))
