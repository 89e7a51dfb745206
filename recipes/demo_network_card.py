"""Export the demo network, measure what was exported, and write its card.

    python recipes/demo_network_card.py --work FOLDER --out stdlib-2m

Reads the checkpoint and curve of `demo_network.py`; writes a folder that transformers 4.57 and 5 open, with the weights
in bfloat16. Every figure is measured on the files written, not on the network in memory that they came from.
"""

import argparse
import json
import lzma
import math
import platform
import textwrap
from pathlib import Path

import numpy as np
import torch
from demo_network import ADAM_LR, ANNEAL, CONTEXT, CURVE_STRIDE, MUON_LR, ROWS, SEED, SEPARATOR, VOCABULARY, config
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from understudy.data.documents import Document
from understudy.data.packing import Packed, pack, tokenise
from understudy.data.stdlib import Stdlib

NAME = "stdlib-2m"
RESAMPLES = 4000
TRAIN_SAMPLE = 12
"""The training figure is measured on every twelfth training document."""

HELD_OUT_IS = (
    "modules of the standard library chosen by a hash of their path, near-duplicates together, without site-packages, "
    "tests, encodings, pydoc_data and lib2to3"
)
BITS_PER_BYTE_IS = (
    f"loss in nats / ln 2 / bytes of UTF-8, over all tokens with a target: documents opened by {SEPARATOR} and laid "
    f"end to end in rows of {CONTEXT} tokens, each token predicted from those before it in its row; the first token of "
    "a row has no target and its bytes are not counted"
)


KEPT_OF_CONFIG = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)


def export(work: Path, out: Path) -> None:
    """Write config, tokenizer and bfloat16 weights in the form that both transformers 4.57 and 5 read."""
    export_weights(torch.load(work / "checkpoint.pt", weights_only=True)["network"], config(), out)
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})

    Tokenizer.from_file(str(work / "tokenizer.json")).save(str(out / "tokenizer.json"))
    special = {"bos_token": SEPARATOR, "eos_token": SEPARATOR, "unk_token": None, "pad_token": None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", settings | special | {"model_max_length": CONTEXT})


def export_weights(state: dict[str, torch.Tensor], own: LlamaConfig, out: Path) -> None:
    """Write config.json and model.safetensors, in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.bfloat16().contiguous() for name, value in state.items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    written = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
    written |= {name: getattr(own, name) for name in KEPT_OF_CONFIG}
    # transformers 4 reads rope_theta, transformers 5 rope_parameters; each keeps the other's key unread
    write_json(out / "config.json", written | {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": rope})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@torch.no_grad()
def per_document(network: torch.nn.Module, packed: Packed) -> tuple[np.ndarray, np.ndarray, int]:
    """(bits, scored bytes) of each document, and the number of targets."""
    n_documents = int(packed.document.max()) + 1
    bits, n_bytes = torch.zeros(n_documents, dtype=torch.float64), torch.zeros(n_documents, dtype=torch.int64)
    n_targets = 0
    for rows in torch.arange(len(packed)).split(32):
        batch = packed.batch(rows)
        assert batch.targets is not None
        assert batch.mask is not None
        logits = network(input_ids=batch.inputs["input_ids"]).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
        real = batch.mask
        bits.index_add_(0, batch.tags["document"][real], nats[real].double() / math.log(2))
        n_bytes.index_add_(0, batch.tags["document"][real], packed.scored_bytes(rows)[real])
        n_targets += int((batch.targets >= 0).sum())
    return bits.numpy(), n_bytes.numpy(), n_targets


def with_interval(bits: np.ndarray, n_bytes: np.ndarray) -> dict:
    """Bits per byte over all documents, with a 95% interval from resampling documents."""
    draws = np.random.default_rng(0).integers(0, len(bits), (RESAMPLES, len(bits)))
    low, high = np.quantile(bits[draws].sum(1) / n_bytes[draws].sum(1), [0.025, 0.975])
    return {"value": round(bits.sum() / n_bytes.sum(), 4), "low": round(low, 4), "high": round(high, 4)}


def xz_bits(documents: list[Document]) -> np.ndarray:
    return np.array([8 * len(lzma.compress(item.text.encode(), preset=9 | lzma.PRESET_EXTREME)) for item in documents])


def measure(work: Path, out: Path, note: str) -> dict:
    network = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    train, held_out = list(Stdlib("train")), list(Stdlib("held_out"))
    bits, n_bytes, n_targets = per_document(network, pack(tokenise(held_out, tokenizer), CONTEXT))
    seen_bits, seen_bytes, _ = per_document(network, pack(tokenise(train[::TRAIN_SAMPLE], tokenizer), CONTEXT))
    sizes = np.array([document.n_bytes for document in held_out])

    curve = [json.loads(line) for line in (work / "curve.jsonl").read_text().splitlines()]
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    n_tokens = curve[-1]["tokens"]
    return {
        "name": NAME,
        "what": f"Llama, 4 layers, width 192, 6 heads, MLP 512, tied embedding, {VOCABULARY} byte-level BPE tokens",
        "parameters": n_parameters,
        "weights_bytes": (out / "model.safetensors").stat().st_size,
        "training": {
            "tokens": n_tokens,
            "flops": 6 * n_parameters * n_tokens,
            "flops_is": "6 N tokens; N is all parameters, the tied embedding once as it is also the output matrix; "
            "attention scores are not counted",
            "optimiser": f"Muon (lr {MUON_LR}) on hidden matrices, AdamW (lr {ADAM_LR}) on the rest",
            "annealed": f"learning rate falls linearly to zero over the last {ANNEAL:.0%}",
            "tokens_per_step": ROWS * CONTEXT,
            "precision": "bfloat16 autocast",
            "seed": SEED,
            "note": note,
            "wall_s": curve[-1]["wall_s"],
            "tokens_per_s": curve[-1]["tokens_per_s"],
        },
        "corpus": {
            "source": "stdlib",
            "python": platform.python_version(),
            "held_out_is": HELD_OUT_IS,
            "train_bytes": sum(document.n_bytes for document in train),
            "train_documents": len(train),
            "held_out_bytes": int(sizes.sum()),
            "held_out_documents": len(held_out),
        },
        "held_out_bits_per_byte": with_interval(bits, n_bytes)
        | {"interval": "95%, bootstrap over documents", "is": BITS_PER_BYTE_IS, "scored_bytes": int(n_bytes.sum())},
        "held_out_nats_per_token": round(bits.sum() * math.log(2) / n_targets, 4),
        "xz_bits_per_byte": with_interval(xz_bits(held_out), sizes)
        | {"is": "xz -9e, each held-out file by itself, all its bytes"},
        "train_bits_per_byte": with_interval(seen_bits, seen_bytes)
        | {"is": f"as held_out_bits_per_byte, on every {TRAIN_SAMPLE}th training document"},
        "curve": {
            "is": f"(training tokens, bits per byte on every {CURVE_STRIDE}th held-out row, weights and activations as "
            "in training)",
            "points": [[point["tokens"], round(point["bits_per_byte"], 4)] for point in curve],
        },
    }


def page(card: dict) -> str:
    """The card as a page to read; every figure comes from card.json."""
    training, corpus = card["training"], card["corpus"]
    held_out = f"{corpus['held_out_bytes']:,} in {corpus['held_out_documents']}"
    seen = f"{corpus['train_bytes']:,} bytes in {corpus['train_documents']}"

    def figure(name: str) -> str:
        return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**card[name])

    paragraphs = "\n\n".join(
        textwrap.fill(text, 120, break_on_hyphens=False)
        for text in (
            f"Held out: {corpus['held_out_is']}. A module is on the same side in Python 3.11, 3.12 and 3.13, but its "
            "text is not: on another version's text the figure is another one.",
            f"Bits per byte: {BITS_PER_BYTE_IS}.",
            *([f"This run: {training['note']}."] if training["note"] else []),
        )
    )
    return f"""# {card["name"]}

A small language model that has read the Python standard library, for demonstrations, tests and as the first rung of a
ladder. It is not useful for writing Python.

| | |
|---|---|
| network | {card["what"]}, context {CONTEXT} |
| parameters | {card["parameters"]:,} (bfloat16, {card["weights_bytes"] / 1e6:.1f} MB) |
| training | {training["tokens"]:,} tokens, {training["flops"]:.3g} FLOPs ({training["flops_is"]}) |
| optimiser | {training["optimiser"]}; {training["annealed"]} |
| corpus | standard library of Python {corpus["python"]}: {seen} modules to train on, {held_out} held out |
| **held-out bits per byte** | **{figure("held_out_bits_per_byte")}** ({card["held_out_bits_per_byte"]["interval"]}) |
| `xz -9e`, file by file | {figure("xz_bits_per_byte")} on the same held-out modules |
| training bits per byte | {figure("train_bits_per_byte")}, on every {TRAIN_SAMPLE}th training module |

{paragraphs}

`card.json` holds the same figures and the curve. Made by `recipes/demo_network.py` and `recipes/demo_network_card.py`.
The text itself is not here; it is the Python Software Foundation's and comes with every Python.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that demo_network.py trained in")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the network to")
    parser.add_argument("--note", default="", help="what about this run differs from the recipe, for the card")
    asked = parser.parse_args()
    export(asked.work, asked.out)
    card = measure(asked.work, asked.out, asked.note)
    write_json(asked.out / "card.json", card)
    (asked.out / "README.md").write_text(page(card))
    print(page(card))
