"""The zoo: 41 random tiny networks, what to feed them, and a site in the middle of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
import transformers as t
from packaging.version import Version
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Calls, Network
from understudy.networks import AnyModule, HFCausalLM

from . import own

SEQ = ("batch", "pos", "d")
MAP = ("batch", "d", "y", "x")
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 61}
KV = {"num_key_value_heads": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    site: str
    """Short name or path of a place in the middle."""
    axes: tuple[str, ...] = SEQ
    calls: Calls = "once"
    inputs: Callable[[], Mapping[str, Tensor]] | None = None
    """None for causal language models, whose adapter has an example of its own."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Checks that are expected to refuse: check -> `ErrorType: part of the reason`."""
    since: str = ""
    """The first transformers whose modules are named as `site` is; older ones have the architecture, not the name."""

    def network(self) -> Network:
        torch.manual_seed(0)
        module = self.build()
        if self.inputs is None:
            return HFCausalLM(module, self.name)
        torch.manual_seed(1)
        batch = Batch(self.inputs())
        return AnyModule(module, batch, self.axes, name=self.name, calls=self.calls)


def needs(since: str) -> None:
    """Skip the test under a transformers older than `since`, whose modules are named or called differently."""
    if since and Version(t.__version__) < Version(since):
        pytest.skip(f"transformers {t.__version__} builds it otherwise; this case describes {since} and newer")


def lm(name: str, config: t.PretrainedConfig, **kwargs) -> Case:
    return Case(name, lambda: t.AutoModelForCausalLM.from_config(config), kwargs.pop("site", "resid.1"), **kwargs)


def ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 61, (3, 7))}


def ids_both() -> dict[str, Tensor]:
    return ids() | {"decoder_input_ids": torch.randint(3, 61, (3, 5))}


def pixels(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def series() -> dict[str, Tensor]:
    return {
        "past_values": torch.randn(3, 10), "past_time_features": torch.randn(3, 10, 2),
        "past_observed_mask": torch.ones(3, 10), "future_values": torch.randn(3, 4),
        "future_time_features": torch.randn(3, 4, 2),
    }  # fmt: skip


GPT = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 61, "n_positions": 32, **IDS}
IMAGE = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": 16, "patch_size": 4}
VISION = {**IMAGE, "projection_dim": 16}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "vocab_size": 61, **IDS}

LANGUAGE_MODELS = [
    lm("gpt2", t.GPT2Config(**GPT)),
    lm("gptj", t.GPTJConfig(**GPT, rotary_dim=8)),
    lm("gpt_neo", t.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, vocab_size=61, max_position_embeddings=32,
                                 attention_types=[[["global", "local"], 1]], **IDS), site="resid.0"),
    lm("gpt_neox", t.GPTNeoXConfig(**SMALL, **IDS, max_position_embeddings=32)),
    lm("llama", t.LlamaConfig(**SMALL, **KV, **IDS)),
    lm("mistral", t.MistralConfig(**SMALL, **KV, **IDS)),
    lm("mixtral", t.MixtralConfig(**SMALL, **KV, **IDS, num_local_experts=4)),
    lm("qwen2", t.Qwen2Config(**SMALL, **KV, **IDS)),
    lm("qwen3", t.Qwen3Config(**SMALL, **KV, **IDS, head_dim=16)),
    lm("gemma2", t.Gemma2Config(**SMALL, **KV, **IDS, head_dim=16)),
    lm("gemma3", t.Gemma3TextConfig(**SMALL, **KV, **IDS, head_dim=16)),
    lm("phi", t.PhiConfig(**SMALL, **IDS)),
    lm("phi3", t.Phi3Config(**SMALL, **KV, **IDS)),
    lm("olmo2", t.Olmo2Config(**SMALL, **KV, **IDS)),
    lm("opt", t.OPTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, ffn_dim=64, vocab_size=61,
                          word_embed_proj_dim=32, max_position_embeddings=32, **IDS)),
    lm("bloom", t.BloomConfig(hidden_size=32, n_layer=3, n_head=2, vocab_size=61, **IDS)),
    lm("falcon", t.FalconConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=61, **IDS)),
    lm("gpt_oss", t.GptOssConfig(**SMALL, **KV, **IDS, head_dim=16, num_local_experts=4, num_experts_per_tok=2)),
    lm("mamba", t.MambaConfig(**MAMBA)),
    lm("mamba2", t.Mamba2Config(**MAMBA, num_heads=4, head_dim=16, expand=2, n_groups=1, chunk_size=8)),
    lm("rwkv", t.RwkvConfig(hidden_size=32, num_hidden_layers=3, attention_hidden_size=32, intermediate_size=64,
                            vocab_size=61, **IDS)),
    lm("jamba", t.JambaConfig(**SMALL, **KV, **IDS, num_experts=2, use_mamba_kernels=False, attn_layer_period=2,
                              attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
                              mamba_dt_rank=4)),
]  # fmt: skip

ENCODERS = [
    Case("t5", lambda: t.T5ForConditionalGeneration(t.T5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=3, num_heads=2, vocab_size=61, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0)), "encoder.block.1:out", inputs=ids_both),
    Case("bert", lambda: t.BertModel(t.BertConfig(**SMALL)), "encoder.layer.1:out", inputs=ids),
    Case("roberta", lambda: t.RobertaModel(t.RobertaConfig(**SMALL)), "encoder.layer.1:out", inputs=ids),
    Case("modernbert", lambda: t.ModernBertModel(t.ModernBertConfig(**SMALL, **IDS, cls_token_id=1, sep_token_id=2)),
         "layers.1:out", inputs=ids),
    Case("albert", lambda: t.AlbertModel(t.AlbertConfig(**SMALL, embedding_size=16)),
         "encoder.albert_layer_groups.0.albert_layers.0:out#1", calls="depth", inputs=ids),
    Case("vit", lambda: t.ViTModel(t.ViTConfig(**IMAGE)), "layers.1:out", inputs=pixels, since="5.9"),
    Case("dinov2", lambda: t.Dinov2Model(t.Dinov2Config(**IMAGE, mlp_ratio=2)), "encoder.layer.1:out", inputs=pixels),
    Case("swin", lambda: t.SwinModel(t.SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2],
                                                  num_heads=[2, 2], window_size=4)),
         "encoder.layers.0.blocks.1:out", inputs=pixels),
    Case("convnext", lambda: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1],
                                                              image_size=32)),
         "encoder.stages.1:out", axes=MAP, inputs=lambda: pixels(32)),
    Case("resnet", lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2],
                                                        layer_type="basic")),
         "encoder.stages.0:out", axes=MAP, inputs=lambda: pixels(32)),
    Case("clip", lambda: t.CLIPModel(t.CLIPConfig(text_config={**SMALL, **IDS, "projection_dim": 16},
                                                  vision_config=VISION, projection_dim=16)),
         "text_model.encoder.layers.1:out", inputs=lambda: ids() | {"pixel_values": torch.randn(3, 3, 16, 16)}),
    Case("whisper", lambda: t.WhisperModel(t.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=61, num_mel_bins=8, max_source_positions=10,
        max_target_positions=16, decoder_start_token_id=1, **IDS)), "encoder.layers.0:out",
        inputs=lambda: {"input_features": torch.randn(3, 8, 20), "decoder_input_ids": torch.randint(3, 61, (3, 5))}),
    Case("wav2vec2", lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(
        **{**SMALL, "vocab_size": 32}, conv_dim=[16, 16], conv_stride=[5, 4], conv_kernel=[10, 8],
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, mask_time_prob=0.0)), "encoder.layers.1:out",
        inputs=lambda: {"input_values": torch.randn(2, 400)}),
    Case("time_series_transformer", lambda: t.TimeSeriesTransformerModel(t.TimeSeriesTransformerConfig(
        prediction_length=4, context_length=6, lags_sequence=[1, 2, 4], num_time_features=2, d_model=32,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64)), "encoder.layers.0:out", inputs=series),
]  # fmt: skip

OWN = [
    Case("nn.LSTM", own.Lstm, "lstm:out", axes=("time", "batch", "d"),
         inputs=lambda: {"tokens": torch.randint(0, 11, (6, 3))}),
    Case("nn.GRUCell", own.GruCell, "cell:out", axes=("batch", "d"), calls="time",
         inputs=lambda: {"x": torch.randn(3, 6, 8)}),
    Case("nn.TransformerEncoder", own.encoder, "layers.1:out", inputs=lambda: {"src": torch.randn(3, 7, 16)}),
    Case("impala policy", own.Impala, "stages.1:out", axes=MAP, inputs=lambda: {"frames": torch.rand(2, 3, 16, 16)}),
    Case("unet", own.UNet, "down.1:out", axes=MAP, inputs=lambda: {"x": torch.randn(2, 1, 16, 16)}),
]  # fmt: skip

CASES = [*LANGUAGE_MODELS, *ENCODERS, *OWN]
