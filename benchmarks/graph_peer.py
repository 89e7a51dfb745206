"""circuit-tracer's graph of one input, timed: the other half of `understudy bench graph`, run by a Python that has it.

One JSON object on stdin (network, transcoders, ids, batch, nodes, threads, out), one on stdout. The network is a folder
of a Llama checkpoint, put into TransformerLens weight by weight; the graph is saved as safetensors.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import torch
import yaml
from safetensors.torch import save_file

# circuit-tracer 0.5.0 imports this name, which newer huggingface_hub dropped; nothing is downloaded here.
if not hasattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER"):
    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer


def opened(network: str, transcoders: Path) -> tuple[TransformerLensReplacementModel, torch.nn.Module]:
    """The replacement model in fp32, every weight loaded, and the network it was made from."""
    original = AutoModelForCausalLM.from_pretrained(network, dtype=torch.float32)
    c = original.config
    if c.model_type != "llama":
        raise SystemExit(f"{network} is a {c.model_type}; this comparison is written for Llama checkpoints.")
    grouped = c.num_key_value_heads != c.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_ctx=c.max_position_embeddings, d_head=c.head_dim,
        n_heads=c.num_attention_heads, n_key_value_heads=c.num_key_value_heads if grouped else None,
        d_mlp=c.intermediate_size, d_vocab=c.vocab_size, act_fn=c.hidden_act, normalization_type="RMS",
        positional_embedding_type="rotary", rotary_dim=c.head_dim, rotary_adjacent_pairs=False,
        rotary_base=int((getattr(c, "rope_parameters", None) or {}).get("rope_theta", 10000)), final_rms=True,
        gated_mlp=True, eps=c.rms_norm_eps, device="cpu", dtype=torch.float32, model_name="benchmark",
        original_architecture="LlamaForCausalLM",
    )  # fmt: skip
    about = yaml.safe_load((transcoders / "config.yaml").read_text())
    paths = {i: str(transcoders / name) for i, name in enumerate(about["transcoders"])}
    hooks = about["feature_input_hook"], about["feature_output_hook"]
    made = load_transcoder_set(
        paths, "benchmark", *hooks, device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=False,
        lazy_decoder=False,
    )  # fmt: skip
    model = TransformerLensReplacementModel.from_config(config, made, tokenizer=AutoTokenizer.from_pretrained(network))
    renamed = {"unembed.": "unembed.old_unembed.", ".mlp.": ".mlp.old_mlp."}
    weights = convert_llama_weights(original, config)
    for old, new in renamed.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    missed = model.load_state_dict(weights, strict=False)
    wanted = [n for n, _ in model.named_parameters() if not n.startswith("transcoders.")]
    lacking = set(wanted) & set(missed.missing_keys)
    if lacking or missed.unexpected_keys:
        raise SystemExit(f"weights do not fit: {sorted(lacking)} {missed.unexpected_keys}")
    return model, original


def memory(which: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {which}")


def main() -> None:
    asked = SimpleNamespace(**json.load(sys.stdin))
    torch.set_num_threads(asked.threads)
    model, original = opened(asked.network, Path(asked.transcoders))
    ids = torch.tensor(asked.ids)
    with torch.no_grad():
        theirs, wanted = (m.log_softmax(-1) for m in (model(ids[None]), original(ids[None]).logits))
    del original
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    loaded, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    graph = attribute(ids, model, batch_size=asked.batch, max_feature_nodes=asked.nodes)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = memory("VmHWM")
    active = graph.active_features[graph.selected_features]
    outputs = torch.tensor([t.vocab_idx for t in graph.logit_targets])
    tensors = {"edges": graph.adjacency_matrix, "features": active.long(), "outputs": outputs.long()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, asked.out)
    found = {
        "seconds": seconds, "cpu_s": cpu, "peak_mib": peak, "loaded_mib": loaded, "rows": len(active) + len(outputs),
        "nodes": len(graph.adjacency_matrix), "edges": int((graph.adjacency_matrix != 0).sum()),
        "outputs_differ": float((theirs - wanted).abs().max()),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
