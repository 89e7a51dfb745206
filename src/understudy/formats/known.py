"""Public dictionaries by name: repositories on the Hugging Face hub and the network each belongs to. No weights."""

from typing import NamedTuple


class Known(NamedTuple):
    """A row of `understudy dictionaries`."""

    network: str
    source: str
    """What --dictionary takes; letters in capitals are to be filled in."""
    kind: str
    format: str
    note: str = ""


KNOWN = (
    Known("openai-community/gpt2", "hf:jbloom/GPT2-Small-SAEs-Reformatted:blocks.LAYER.hook_resid_pre", "SAE",
          "saelens", "trained on a stream with centred weights"),
    Known("EleutherAI/pythia-70m-deduped", "hf:ctigges/pythia-70m-deduped__res-sm_processed", "SAE", "saelens"),
    Known("EleutherAI/pythia-410m", "hf:EleutherAI/sae-pythia-410m-65k:layers.LAYER.mlp", "SAE", "sparsify"),
    Known("meta-llama/Llama-3.2-1B", "hf:EleutherAI/sae-Llama-3.2-1B-131k:layers.LAYER.mlp", "SAE", "sparsify"),
    Known("meta-llama/Meta-Llama-3-8B", "hf:EleutherAI/sae-llama-3-8b-32x:layers.LAYER", "SAE", "sparsify"),
    Known("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
          "hf:EleutherAI/sae-DeepSeek-R1-Distill-Qwen-1.5B-65k:layers.LAYER.mlp", "SAE", "sparsify"),
    Known("google/gemma-2-2b", "hf:chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40", "SAE", "saelens"),
    Known("google/gemma-2-2b", "hf:google/gemma-scope-2b-pt-res:layer_LAYER/width_16k/canonical", "SAE", "gemma-scope"),
    Known("google/gemma-2-2b", "hf:google/gemma-scope-2b-pt-mlp:layer_LAYER/width_16k/canonical", "SAE", "gemma-scope"),
    Known("google/gemma-2-2b", "hf:google/gemma-scope-2b-pt-att:layer_LAYER/width_16k/canonical", "SAE", "gemma-scope"),
    Known("google/gemma-2-2b", "hf:google/gemma-scope-2b-pt-transcoders:layer_*/width_16k/canonical", "transcoder",
          "gemma-scope"),
    Known("google/gemma-2-9b", "hf:google/gemma-scope-9b-pt-res:layer_LAYER/width_16k/canonical", "SAE", "gemma-scope"),
    Known("google/gemma-2-9b-it", "hf:google/gemma-scope-9b-it-res:layer_LAYER/width_16k/canonical", "SAE",
          "gemma-scope"),
    Known("google/gemma-2-27b", "hf:google/gemma-scope-27b-pt-res:layer_LAYER/width_131k/canonical", "SAE",
          "gemma-scope"),
    Known("google/gemma-3-1b-pt", "hf:google/gemma-scope-2-1b-pt:resid_post/layer_LAYER_width_16k_l0_medium", "SAE",
          "gemma-scope-2"),
    Known("google/gemma-3-1b-pt", "hf:google/gemma-scope-2-1b-pt:transcoder_all/layer_*_width_16k_l0_small",
          "transcoder", "gemma-scope-2"),
    Known("google/gemma-3-1b-pt", "hf:google/gemma-scope-2-1b-pt:clt/width_262k_l0_medium", "CLT", "gemma-scope-2"),
    Known("google/gemma-3-4b-it", "hf:google/gemma-scope-2-4b-it:resid_post/layer_LAYER_width_16k_l0_medium", "SAE",
          "gemma-scope-2"),
    Known("meta-llama/Llama-3.2-1B", "hf:mntss/transcoder-Llama-3.2-1B", "transcoder", "circuit-tracer"),
    Known("meta-llama/Llama-3.2-1B", "hf:mntss/clt-llama-3.2-1b-524k", "CLT", "circuit-tracer"),
    Known("google/gemma-2-2b", "hf:mntss/clt-gemma-2-2b-426k", "CLT", "circuit-tracer"),
    Known("google/gemma-2-2b", "hf:mntss/clt-gemma-2-2b-2.5M", "CLT", "circuit-tracer"),
    Known("Qwen/Qwen3-0.6B", "hf:mwhanna/qwen3-0.6b-transcoders-lowl0", "transcoder", "circuit-tracer"),
    Known("Qwen/Qwen3-1.7B", "hf:mwhanna/qwen3-1.7b-transcoders-lowl0", "transcoder", "circuit-tracer"),
    Known("Qwen/Qwen3-4B", "hf:mwhanna/qwen3-4b-transcoders", "transcoder", "circuit-tracer"),
)  # fmt: skip
"""Names as their authors published them; they may move, and some ask for a login."""


def known_for(network: str) -> list[Known]:
    """Rows whose network's name contains `network`, whatever its case; all for an empty one."""
    wanted = network.removeprefix("hf:").lower()
    return [row for row in KNOWN if wanted in row.network.lower()]
