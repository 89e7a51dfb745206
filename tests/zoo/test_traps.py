"""Traps of hooks that real architectures set: each is an error that says what to do, or does not exist here."""

import pytest
import torch

from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_parts, find_sites
from understudy.core.records.errors import BadInput, SiteError, SiteNeverFired, UnknownName
from understudy.core.replacement import MEASURED_ERRORS, Replacement
from understudy.core.site import Site
from understudy.core.tap import Tap
from understudy.sparsity import Identity

from .cases import CASES, LANGUAGE_MODELS, Case, needs

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("name", "path", "since"),
    [
        ("mamba", "backbone.layers.1.mixer.conv1d", "5.15"),
        ("mamba2", "backbone.layers.1.mixer.conv1d", "5.15"),
        ("mamba", "backbone.layers.1.mixer.dt_proj", "5.15"),
        ("nn.TransformerEncoder", "layers.1.self_attn.out_proj", ""),
        ("mixtral", "model.layers.1.mlp.experts.act_fn:out#99", "5.0"),
    ],
)
def test_a_module_that_is_never_called_raises(name: str, path: str, since: str):
    needs(since)
    network = BY_NAME[name].network()
    with pytest.raises(SiteNeverFired, match="never reached"):
        network.record(network.example(), [Site.parse(path)])


def test_a_module_shared_by_layers_must_say_which():
    network = BY_NAME["albert"].network()
    shared = "encoder.albert_layer_groups.0.albert_layers.0:out"
    with pytest.raises(SiteError, match=r"called 3 times in depth: name the layer, e.g. .*#0"):
        network.layout(Site.parse(shared))
    first, last = (network.record(network.example(), [s])[s] for s in (Site.parse(f"{shared}#{i}") for i in (0, 2)))
    assert not torch.equal(first, last)


def test_a_cell_called_over_time_gives_a_time_axis():
    network = BY_NAME["nn.GRUCell"].network()
    every, third = Site("cell"), Site("cell", call=2)
    values = network.record(network.example(), [every, third])
    assert values[every].shape == (3, 6, 16)
    assert torch.equal(values[every][:, 2], values[third])


def test_call_indices_start_again_with_each_forward_pass():
    network = BY_NAME["nn.GRUCell"].network()
    seen = []
    with network.edited({Site("cell"): lambda v, call: (seen.append(call), v)[1]}):
        network.forward(network.example())
        network.forward(network.example())
    assert seen == [*range(6)] * 2


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("impala policy", "stages.0.pool"),
        ("impala policy", "stages.0.conv"),
        ("resnet", "encoder.stages.0.layers.0.layer"),
        ("falcon", "transformer.h.1.mlp"),
    ],
)
def test_what_is_rewritten_in_place_is_read_as_it_was(name: str, path: str):
    network = BY_NAME[name].network()
    site, batch = Site(path), network.example()
    with Tap(network.module, [site], clone=True) as tap, torch.no_grad():
        network.forward(batch)
    truth = tap[site].reshape(-1)
    assert torch.equal(network.record(batch, [site], stop=False)[site].flatten().sort().values, truth.sort().values)


def test_a_batch_first_tensor_comes_out_of_a_time_first_one():
    network = BY_NAME["nn.LSTM"].network()
    assert network.record(network.example(), [Site("lstm")])[Site("lstm")].shape == (3, 6, 24)


def test_bloom_parts_do_not_contain_the_stream():
    network = BY_NAME["bloom"].network()
    names = find_sites(network, "embed,attn_out.0,mlp_out.0,resid.0")
    embed, attn, mlp, resid = (network.record(network.example(), names)[s] for s in names)
    torch.testing.assert_close(embed + attn + mlp, resid)


def test_opt_has_mlps_of_loose_layers_over_flattened_tokens():
    network = BY_NAME["opt"].network()
    (part,) = find_parts(network, "mlp.1")
    assert part.replaces == ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2")
    assert network.record(network.example(), [part.write])[part.write].shape == (3, 13, 32)


def test_jamba_names_each_layer_by_what_it_is():
    network = BY_NAME["jamba"].network()
    assert [p.name for p in network.parts()] == ["mixer.0", "mlp.0", "attn.1", "mlp.1", "mixer.2", "mlp.2"]


def test_rwkv_refuses_left_padding():
    network = BY_NAME["rwkv"].network()
    ids = network.example().inputs["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(BadInput, match="other outputs behind left padding"):
        network.forward(Batch({"input_ids": ids, "attention_mask": mask}))


def test_transformer_lens_names_mean_what_they_mean_there():
    gpt2, gemma2 = BY_NAME["gpt2"].network(), BY_NAME["gemma2"].network()
    assert find_sites(gpt2, "hook_embed") == (Site("transformer.wte"),)
    assert find_sites(gpt2, "blocks.0.hook_resid_pre") == (Site("transformer.h.0", "in"),)
    assert find_sites(gemma2, "blocks.1.hook_mlp_out") == (Site("model.layers.1.post_feedforward_layernorm"),)
    assert find_sites(gemma2, "blocks.1.mlp.hook_out") == (Site("model.layers.1.mlp"),)
    with pytest.raises(UnknownName, match=r"cannot be translated.*no neurons"):
        find_sites(BY_NAME["mixtral"].network(), "blocks.1.mlp.hook_post")


@pytest.mark.parametrize("case", LANGUAGE_MODELS, ids=lambda case: case.name)
def test_language_models_name_their_parts_and_survive_left_padding(case: Case):
    network = case.network()
    n_blocks = sum(row.name.startswith("resid.") for row in network.named_sites())
    mixing = [p for p in network.parts() if p.name.startswith(("attn.", "mixer."))]
    assert len(mixing) == n_blocks * (2 if case.name == "rwkv" else 1)
    mlps = [p for p in network.parts() if p.name.startswith("mlp.")]
    assert len(mlps) == (0 if case.name in ("mamba", "mamba2", "rwkv") else n_blocks)
    has_neurons = [network.neurons(p) is not None for p in mlps]
    experts = {"mixtral": [False] * 3, "gpt_oss": [False] * 3, "jamba": [True, False, True]}
    assert has_neurons == experts.get(case.name, [True] * len(mlps))
    if case.name == "rwkv":
        return
    assert all(block.addends for block in network.blocks)
    ids = network.example().inputs["input_ids"]
    mask = torch.ones(3, 18, dtype=torch.long)
    mask[:, :5] = 0
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), ids], 1)
    behind = network.forward(Batch({"input_ids": padded, "attention_mask": mask})).logits[:, 5:]
    torch.testing.assert_close(behind, network.forward(network.example()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", LANGUAGE_MODELS, ids=lambda case: case.name)
def test_every_part_can_be_replaced_and_its_error_added_back(case: Case):
    network = case.network()
    batch, groups = network.example(), []
    for part in network.parts():
        d_in, d_out = network.width(part.read), network.width(part.write)
        arrays = {"W_enc": torch.eye(d_in), "b_enc": torch.zeros(d_in), "W_dec": torch.zeros(d_in, d_out)}
        groups.append(Group([LinearDictionary({part.read: d_in}, {part.write: d_out}, Identity(), arrays)]))
    replacement = Replacement(network, groups)
    clean = network.forward(batch).logits
    kept = replacement.run(batch, MEASURED_ERRORS, replacement.record(batch)).output.logits
    torch.testing.assert_close(kept, clean, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(replacement.run(batch).output.logits, clean)
