"""Train the demo's recurrent networks: a GRU and a Mamba-2 that have read the Python standard library.

    python recipes/recurrent_networks.py train --work FOLDER    # either takes about 25 minutes; carries on after a stop
    python recipes/recurrent_networks.py export --work FOLDER   # weights and cards, measured on the files written

Corpus, tokenizer and trainer are those of `demo_network.py`. A recurrence costs a processor many small products, one
after another, so the GRU reads rows cut into pieces of 64 tokens for the first 60% of its run, whole ones after that.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_network import ADAM_LR, ANNEAL, CONTEXT, MUON_LR, ROWS, SEED, VOCABULARY, train
from demo_network_card import BITS_PER_BYTE_IS, per_document, with_interval, write_json
from torch import nn
from transformers import AutoTokenizer, Mamba2Config, Mamba2ForCausalLM

from understudy.data.packing import pack, tokenise
from understudy.data.stdlib import Stdlib
from understudy.networks import open_network
from understudy.networks.gru import GRU, GRUConfig, save_gru

ROOT = Path(__file__).parent.parent / "src/understudy/networks/demo"
TOKENIZER = ROOT / "stdlib-2m/tokenizer.json"
CURVE_POINTS = 8


def gru() -> GRU:
    return GRU(GRUConfig(VOCABULARY, 128, 192, 2, CONTEXT, eos_token_id=0))


def mamba2() -> Mamba2ForCausalLM:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, expand=2, num_heads=4, head_dim=64,
            state_size=16, n_groups=1, chunk_size=32, tie_word_embeddings=True, use_cache=True, bos_token_id=0,
            eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    what: str
    build: Callable[[], nn.Module]
    tokens: int
    cut: tuple[float, int] = (0.0, CONTEXT)
    """Share of the run in which rows are cut into pieces, and their tokens."""


RECIPES = {
    "gru": Recipe("GRU, 2 blocks, width 128, states of 192", gru, 4_000_000, cut=(0.6, 64)),
    "mamba2": Recipe("Mamba-2, 3 blocks, width 128, 4 heads of 64, states of 16 a channel", mamba2, 2_400_000),
}


def train_all(work: Path, names: list[str]) -> None:
    for name in names:
        recipe, folder = RECIPES[name], work / name
        if (folder / "done").exists():
            continue
        resume = (folder / "checkpoint.pt").exists()
        print(f"{name}: {recipe.tokens:,} tokens{', resumed' if resume else ''}", flush=True)
        train(folder, recipe.tokens, resume, False, recipe.build, TOKENIZER, (), CURVE_POINTS, recipe.cut)
        (folder / "done").touch()


def export(work: Path, name: str) -> None:
    """Weights in bfloat16, config and card; the card's figures are measured on the files written."""
    recipe, folder, out = RECIPES[name], work / name, ROOT / name
    module = recipe.build()
    module.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["network"])
    if isinstance(module, GRU):
        save_gru(module, out)
    elif isinstance(module, Mamba2ForCausalLM):
        module.bfloat16().save_pretrained(out)
        (out / "generation_config.json").unlink(missing_ok=True)  # says no more than config.json
    (out / "model.safetensors").chmod(0o644)
    network = open_network(f"demo:{name}")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER.parent)
    bits, n_bytes, _ = per_document(network.module, pack(tokenise(Stdlib("held_out"), tokenizer), CONTEXT))
    n_parameters = sum(parameter.numel() for parameter in network.module.parameters())
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    last = {"tokens": curve[-1]["tokens"], "wall_s": curve[-1]["wall_s"]}
    cut = f"rows cut to {recipe.cut[1]} tokens over the first {recipe.cut[0]:.0%}" if recipe.cut[0] else "whole rows"
    card = {
        "name": name,
        "what": f"{recipe.what}, tied embedding, {VOCABULARY} tokens; tokenizer, text and trainer of the demo",
        "parameters": n_parameters,
        "weights_bytes": (out / "model.safetensors").stat().st_size,
        "training": last
        | {
            "flops": 6 * n_parameters * last["tokens"],
            "flops_is": "6 N tokens; N is all parameters, the tied embedding once as it is also the output matrix; "
            "what a recurrence does without parameters (gates, scan) is not counted",
            "optimiser": f"Muon (lr {MUON_LR}) on hidden matrices, AdamW (lr {ADAM_LR}) on the rest",
            "annealed": f"learning rate falls linearly to zero over the last {ANNEAL:.0%}",
            "rows": cut,
            "tokens_per_step": ROWS * CONTEXT,
            "seed": SEED,
        },
        "python": platform.python_version(),
        "held_out_bits_per_byte": with_interval(bits, n_bytes)
        | {"interval": "95%, bootstrap over documents", "is": BITS_PER_BYTE_IS, "documents": len(bits)},
        "curve": {
            "is": "(training tokens, bits per byte on every 4th held-out row, weights and activations as in training)",
            "points": [[point["tokens"], round(point["bits_per_byte"], 4)] for point in curve],
        },
    }
    write_json(out / "card.json", card)
    print(f"{name}: {n_parameters:,} parameters, {card['training']['flops']:.3g} FLOPs, "
          f"{card['held_out_bits_per_byte']['value']} bits per byte", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("verb", choices=["train", "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and curves")
    parser.add_argument("--networks", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.verb == "train":
        train_all(asked.work, asked.networks)
    else:
        for name in asked.networks:
            export(asked.work, name)
