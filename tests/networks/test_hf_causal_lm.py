"""HFCausalLM: loss and divergence by hand, half precision, padding, tied weights, generation, neurons."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from understudy.core.batch import Batch
from understudy.core.names import find_sites
from understudy.core.records.errors import BadInput, UnknownName, WrongShape
from understudy.core.site import Site
from understudy.networks import HFCausalLM, hf_causal_lm, next_tokens

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 31, "num_hidden_layers": 2}


def llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> HFCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied, initializer_range=0.3)
    return HFCausalLM(LlamaForCausalLM(config).to(dtype), "llama")


def gpt2() -> HFCausalLM:
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=31, n_positions=32, initializer_range=0.3, **ids)
    return HFCausalLM(GPT2LMHeadModel(config), "gpt2")


def test_next_tokens_by_hand():
    ids = torch.tensor([[5, 6, 7, 8]])
    assert next_tokens(ids).tolist() == [[6, 7, 8, -100]]
    assert next_tokens(ids, torch.tensor([[0, 0, 1, 1]])).tolist() == [[-100, -100, 8, -100]]


def test_loss_is_the_models_own_and_zero_without_a_target():
    network = llama()
    batch = network.example()
    ids = batch.inputs["input_ids"]
    assert batch.targets is not None
    loss = network.loss(network(batch), batch)
    assert loss.shape == ids.shape
    assert (loss[batch.targets == -100] == 0).all()
    own = network.module(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss.sum() / (batch.targets != -100).sum(), own)
    with pytest.raises(BadInput, match="needs targets"):
        network.loss(network(batch), Batch(batch.inputs))


def test_loss_and_divergence_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch):
    a, b = llama(), gpt2()
    batch = a.example()
    out_a, out_b = a(batch), b(batch)
    whole = a.loss(out_a, batch), a.divergence(out_a, out_b, batch)
    monkeypatch.setattr(hf_causal_lm, "CHUNK_BYTES", 4 * 31 * 5)
    torch.testing.assert_close((a.loss(out_a, batch), a.divergence(out_a, out_b, batch)), whole)
    log_p, log_q = out_a.logits.log_softmax(-1), out_b.logits.log_softmax(-1)
    torch.testing.assert_close(whole[1], F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
    assert a.divergence(out_a, out_a, batch).abs().max() == 0
    assert torch.equal(a.choice(out_a), out_a.logits.argmax(-1))


def test_gradients_pass_through_loss_and_divergence():
    network = llama()
    batch = network.example()
    logits = network(batch).logits.detach().requires_grad_()
    out = type("Out", (), {"logits": logits})
    network.loss(out, batch).sum().backward()
    p = logits.detach().softmax(-1)
    targets = torch.where(batch.targets == -100, 0, batch.targets)
    expected = (p - F.one_hot(targets, 31)) * (batch.targets != -100)[..., None]
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_left_padding_changes_nothing(make):
    network = make()
    ids = network.example().inputs["input_ids"]
    padded = torch.cat([torch.zeros(3, 6, dtype=torch.long), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :6] = 0
    batch = Batch({"input_ids": padded, "attention_mask": mask}, mask.bool(), next_tokens(padded, mask))
    plain = network.example()
    torch.testing.assert_close(network(batch).logits[:, 6:], network(plain).logits, atol=1e-5, rtol=1e-5)
    losses = network.loss(network(batch), batch), network.loss(network(plain), plain)
    torch.testing.assert_close(losses[0][:, 6:], losses[1], atol=1e-5, rtol=1e-5)
    assert (losses[0][:, :6] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    network, exact = llama(dtype=dtype), llama()
    batch = exact.example()
    loss = network.loss(network(batch), batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.mean(), exact.loss(exact(batch), batch).mean(), atol=0.1, rtol=0.05)
    assert [row.name for row in network.named_sites()] == [row.name for row in exact.named_sites()]
    assert [b.addends for b in network.blocks] == [b.addends for b in exact.blocks]
    assert all(network.neurons(p) for p in network.parts() if p.name.startswith("mlp"))
    site = Site("model.layers.1")
    assert network.record(batch, [site])[site].dtype == dtype
    with network.edited({site: lambda v, call: v.float() + 1}):
        assert network(batch).logits.dtype == dtype


def test_tied_weights_are_left_out_once():
    tied, untied = llama(tied=True), llama()
    paths = [p.replaces[0] for p in tied.parts()]
    assert set(tied.aside()) == {"model.embed_tokens", "lm_head"}
    assert tied.share_of_parameters(paths) == untied.share_of_parameters(paths)
    norms = 5 * 16
    inside = 2 * (4 * 16 * 16 + 3 * 16 * 24)
    assert tied.share_of_parameters(paths) == inside / (inside + norms)
    assert 0 < tied.share_of_compute(paths) < 1


@pytest.mark.parametrize("make", [llama, gpt2])
def test_neurons_rebuild_what_the_mlp_writes(make):
    network = make()
    batch = network.example()
    for part in network.parts():
        neurons = network.neurons(part)
        assert neurons is not None
        values = network.record(batch, [neurons.site, part.write])
        bias = 0 if neurons.bias is None else neurons.bias
        torch.testing.assert_close(values[neurons.site] @ neurons.W + bias, values[part.write], atol=1e-5, rtol=1e-4)


def test_edits_hold_during_generation():
    network = llama()
    ids = network.example().inputs["input_ids"][:, :4]
    site, seen = Site("model.layers.0"), []
    plain = network.module.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with network.edited({site: lambda v, call: (seen.append((v.shape[1], call)), v)[1]}):
        same = network.module.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(plain, same)
    assert seen == [(4, 0), (1, 0), (1, 0)]


def test_a_site_without_batch_position_and_features_says_so():
    with pytest.raises(WrongShape, match="no axes of batch, position and features"):
        llama().layout(Site("model.rotary_emb"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_behind_are_found_in_every_block_of_a_deep_network_in_half_precision(dtype: torch.dtype) -> None:
    """A block that adds little to a large stream: its sum is lost in rounding, and its kin say what it is."""
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=64, num_hidden_layers=8, num_attention_heads=2, num_key_value_heads=2, intermediate_size=96,
        vocab_size=61, head_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    module = Gemma2ForCausalLM(config)
    with torch.no_grad():
        for block in module.model.layers[2:]:
            for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
                norm.weight.fill_(-0.98)  # Gemma's gain is 1 + weight: these blocks add a fiftieth of the first two
    network = HFCausalLM(module.to(dtype), "gemma2")
    for i in range(8):
        site = find_sites(network, f"blocks.{i}.hook_mlp_out")[0]
        assert str(site) == f"model.layers.{i}.post_feedforward_layernorm:out"
    assert not network.unsure_writes


def test_a_name_whose_place_is_not_known_is_refused() -> None:
    """Blocks that add 2.5 times what their parts write: no sum of them is what the block adds."""
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SIZES))
    block = type(module.model.layers[0])
    plain = block.forward

    def forward(self, hidden_states, *args, **kwargs):
        out = plain(self, hidden_states, *args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        made = hidden_states + 2.5 * (first - hidden_states)
        return (made, *out[1:]) if isinstance(out, tuple) else made

    block.forward = forward
    try:
        network = HFCausalLM(module, "scaled")
        with pytest.raises(UnknownName, match="adds to the stream was not found"):
            find_sites(network, "blocks.1.hook_mlp_out")
    finally:
        block.forward = plain
