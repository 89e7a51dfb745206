"""Hook names of others on the families of transformers: each against the activation computed by hand."""

import pytest
import torch
import transformers

from understudy.core.records.errors import UnderstudyError, UnknownName
from understudy.core.site import Site
from understudy.formats.hook_names import canonical, name, names
from understudy.formats.hooks import module_path, place
from understudy.networks import HFCausalLM

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SMALL | {"intermediate_size": 40}


def network(family: str) -> HFCausalLM:
    torch.manual_seed(0)
    t = transformers
    gemma = WIDE | {"num_key_value_heads": 1, "head_dim": 8}
    config = {
        "gpt2": lambda: t.GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=2, n_positions=64),
        "llama": lambda: t.LlamaConfig(**WIDE, num_key_value_heads=1),
        "mistral": lambda: t.MistralConfig(**WIDE, num_key_value_heads=1),
        "qwen2": lambda: t.Qwen2Config(**WIDE, num_key_value_heads=1),
        "qwen3": lambda: t.Qwen3Config(**WIDE, num_key_value_heads=1, head_dim=8),
        "gemma": lambda: t.GemmaConfig(**gemma),
        "gemma2": lambda: t.Gemma2Config(**gemma),
        "gemma3": lambda: t.Gemma3TextConfig(**gemma),
        "pythia": lambda: t.GPTNeoXConfig(**WIDE),
        "neox": lambda: t.GPTNeoXConfig(**WIDE, use_parallel_residual=False),
        "phi": lambda: t.PhiConfig(**WIDE),
        "phi3": lambda: t.Phi3Config(**WIDE, num_key_value_heads=1, pad_token_id=0),
    }[family]()
    model = t.AutoModelForCausalLM.from_config(config)
    for n, p in model.named_parameters():
        if "norm" in n or "ln_" in n:
            p.data += 0.3 * torch.rand_like(p)
    return HFCausalLM(model, family)


FAMILIES = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "pythia", "neox", "phi", "phi3"
)  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    return {family: network(family) for family in FAMILIES}


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


# -- and back ---------------------------------------------------------------------------------------------------------

VOCABULARY = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_in", "hook_out", "hook_mlp_in", "hook_mlp_out",
    "hook_attn_out", "attn.hook_in", "attn.hook_z", "attn.hook_out", "mlp.hook_in", "mlp.hook_post", "mlp.hook_out",
    "ln2.hook_normalized",
)  # fmt: skip
BESIDE = ("pythia", "phi")
"""Attention and MLP side by side: there is no stream between them."""


def accepted(net, hooks, is_written=False):
    """Those of the hooks that the reader accepts, with their sites."""
    for hook in hooks:
        try:
            yield hook, place(net, hook, is_written).site
        except UnknownName as error:
            refused = str(error)
            assert "cannot be translated" in refused or "can only be read" in refused, refused


def disturbed(net, site):
    """Logits with noise added at a site: the same noise in the same order at any."""

    def edit(value, call):
        return value + torch.randn(value.numel(), generator=torch.Generator().manual_seed(1)).reshape(value.shape)

    with torch.no_grad(), net.edited({site: edit}):
        return net(net.example()).logits


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_that_is_read_comes_back_as_its_site(networks, family, is_written):
    """The whole vocabulary on every block; what comes back is the site itself, not an alias."""
    net = networks[family]
    hooks = ["hook_embed", *(f"blocks.{i}.{hook}" for i in range(2) for hook in VOCABULARY)]
    found = dict(accepted(net, hooks, is_written))
    lost = {hook.split(".", 2)[-1] for hook in hooks} - {hook.split(".", 2)[-1] for hook in found}
    assert lost == ({"hook_resid_mid"} if is_written or family in BESIDE else set())
    for hook, site in found.items():
        if not hook.endswith("ln2.hook_normalized"):
            back = name(net, site, is_written)
            assert place(net, back, is_written).site == site, (hook, back)
        elif not is_written:  # within a norm, so only read; its site is the norm's output, which is what the MLP reads
            assert name(net, site) == hook.replace("ln2.hook_normalized", "mlp.hook_in")


SAME = {  # a path in block 1, and the hook that means the same
    "gpt2": {"attn.c_proj:out": "hook_attn_out", "ln_2:out": "mlp.hook_in", "mlp.act:out": "mlp.hook_post"},
    "llama": {"post_attention_layernorm:out": "mlp.hook_in", "mlp.down_proj:out": "hook_mlp_out", ":in": "hook_in",
              "input_layernorm:in": None},
    "gemma2": {"pre_feedforward_layernorm:out": "mlp.hook_in", "mlp.down_proj:out": "mlp.hook_out",
               "post_feedforward_layernorm:in": "mlp.hook_out"},
    "gemma3": {"pre_feedforward_layernorm:out": "mlp.hook_in", "post_attention_layernorm:out": "hook_attn_out"},
    "pythia": {"mlp.dense_4h_to_h:out": "hook_mlp_out", "post_attention_layernorm:out": "mlp.hook_in"},
    "phi": {"mlp.fc2:out": "hook_mlp_out", "input_layernorm:out": None},
}  # fmt: skip
"""None: read there it is the same tensor as another, written it is not. The stream goes past the norm; Phi's norm feeds
attention and MLP, whose inputs have names of their own."""


@pytest.mark.parametrize("family", SAME)
def test_other_names_of_one_tensor_come_back_as_its_hook(networks, family):
    net = networks[family]
    block = next(row.site.module for row in net.named_sites() if row.name == "resid.1")
    for path, hook in SAME[family].items():
        relative, port = path.split(":")
        site = Site(f"{block}.{relative}" if relative else block, port)
        if hook is None:
            assert name(net, site).startswith("blocks.")
            with pytest.raises(UnknownName, match="TransformerLens name"):
                name(net, site, is_written=True)
        else:
            meant = [place(net, f"blocks.1.{hook}").site]
            assert place(net, name(net, site, is_written=True)).site in meant, path


@pytest.mark.parametrize("family", FAMILIES)
def test_no_path_comes_back_as_something_else(networks, family):
    """Every module and port of block 1 and around: refused, or the same numbers; written, also the same effect."""
    net = networks[family]
    modules = [n for n, _ in net.module.named_modules() if n and (".0" not in n)]
    named, translated = {row.site for row in net.named_sites()}, 0
    for path in (f"{n}.{port}" for n in modules for port in ("input", "output")):
        site = place(net, path).site
        assert module_path(site) == path
        try:
            net.probe([site])
        except UnderstudyError:
            continue  # no activation lies there: a rotary table, a module that is not called
        for is_written in (False, True):
            try:
                other = place(net, name(net, site, is_written), is_written).site
            except UnknownName:
                assert site not in named
                continue
            translated += 1
            values = net.record(net.example(), [site, other])
            assert torch.equal(values[site].flatten(), values[other].flatten()), path
            if is_written and other != site:
                assert torch.equal(disturbed(net, site), disturbed(net, other)), path
    assert translated > 12


def test_a_zeroed_branch_is_not_taken_for_another_one(networks):
    """Two sites that hold equal numbers by chance are two sites."""
    net = network("llama")
    assert len(net.named_sites()) == 11
    for block in net.module.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    assert name(net, Site("model.layers.1.mlp.down_proj")) == "blocks.1.hook_mlp_out"
    assert name(net, Site("model.layers.1.self_attn.o_proj")) == "blocks.1.hook_attn_out"


def test_canonical_leaves_what_has_no_other_name(networks):
    net, gate = networks["llama"], Site("model.layers.0.mlp.gate_proj")
    norm = Site("model.layers.0.post_attention_layernorm")
    assert canonical(net, [gate, norm]) == {gate: gate, norm: Site("model.layers.0.mlp", "in")}


def test_a_site_without_a_name_is_refused_with_the_nearest(networks):
    net = networks["llama"]
    with pytest.raises(UnknownName, match="TransformerLens name"):
        name(net, Site("model.layers.0.mlp.gate_proj"))
    with pytest.raises(UnknownName, match="gate_proj"):
        names(net, [Site("model.layers.0.mlp"), Site("model.layers.0.mlp.gate_proj")])
    with pytest.raises(UnknownName, match="can only be read"):
        place(net, "blocks.0.hook_resid_mid", is_written=True)
