"""Train the ladder: Llamas of five sizes on the Python standard library, each annealed on a budget of its own.

    python recipes/ladder.py train --work FOLDER --compile   # every rung, smallest first; carries on where it stopped
    python recipes/ladder.py export --work FOLDER            # measure what is done, write weights and cards

Corpus, tokenizer and trainer are those of `demo_network.py`, and the demo network itself is the rung of 2.2M
parameters. Each rung has 2.8 times the parameters of the one before and reads seven tokens a parameter, as the demo
did, so compute grows nearly eight times. The last breaks that rule: all weights together may take 12 MB of bfloat16.

Each rung's learning rate falls to zero at the end of its own budget: weights saved half-way through a longer run have
spent the same compute and are worse. Four such checkpoints of the 0.3M network are kept to show by how much; they are
labelled, and no fit uses them.
"""

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_network import ADAM_LR, ANNEAL, CONTEXT, MUON_LR, ROWS, SEED, VOCABULARY, config, llama, train
from demo_network_card import BITS_PER_BYTE_IS, export_weights, per_document, with_interval, write_json
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from understudy.data.packing import Packed, pack, tokenise
from understudy.data.stdlib import Stdlib

ROOT = Path(__file__).parent.parent / "src/understudy/networks"
CURVE_POINTS = 6
"""A point of the curve costs a small rung as much as a tenth of its training."""
TOKENIZER = ROOT / "demo/stdlib-2m/tokenizer.json"


@dataclass(frozen=True)
class Rung:
    name: str
    width: int
    layers: int
    heads: int
    mlp: int
    tokens: int
    keep: tuple[int, ...] = ()
    """Tokens after which un-annealed weights are kept too."""

    def config(self) -> LlamaConfig:
        return config(self.width, self.layers, self.heads, self.mlp)

    def network(self) -> nn.Module:
        return llama(self.config())


RUNGS = (
    Rung("stdlib-0.1m", width=32, layers=3, heads=2, mlp=88, tokens=750_000),
    Rung("stdlib-0.3m", 64, 3, 2, 176, tokens=2_000_000, keep=(62_500, 125_000, 250_000, 500_000)),
    Rung("stdlib-0.8m", 128, 3, 4, 288, tokens=5_500_000),
    Rung("stdlib-4m", 256, 4, 8, 672, tokens=10_000_000),
)
"""Smallest first, so that what is there when time runs out is usable."""


def train_all(work: Path, names: list[str] | None, compiled: bool) -> None:
    for rung in RUNGS:
        if names and rung.name not in names:
            continue
        folder = work / rung.name
        if (folder / "done").exists():
            continue
        resume = (folder / "checkpoint.pt").exists()
        print(f"{rung.name}: {rung.tokens:,} tokens{', resumed' if resume else ''}", flush=True)
        train(folder, rung.tokens, resume, compiled, rung.network, TOKENIZER, rung.keep, CURVE_POINTS)
        (folder / "done").touch()


def export_all(work: Path, out: Path) -> None:
    """Write every finished rung and every kept checkpoint of `work` as a folder of `out`, each with its card."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER.parent)
    held_out = pack(tokenise(Stdlib("held_out"), tokenizer), CONTEXT)
    for rung in RUNGS:
        folder = work / rung.name
        if not (folder / "done").exists():
            print(f"{rung.name}: not finished, left out")
            continue
        curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
        last = {"tokens": curve[-1]["tokens"], "wall_s": curve[-1]["wall_s"]}
        export(
            rung, torch.load(folder / "checkpoint.pt", weights_only=True)["network"], last, held_out, out / rung.name
        )
        for wanted in rung.keep:
            state = torch.load(folder / f"at-{wanted}.pt", weights_only=True)
            part = {"tokens": state["tokens"], "checkpoint_of": rung.name}
            name = f"{rung.name}-at-{round(wanted / 1000)}k"
            export(rung, state["network"], part, held_out, out / name)


def export(rung: Rung, state: dict, training: dict, held_out: Packed, out: Path) -> None:
    """Weights, config and card; the card's figures are measured on the files written."""
    export_weights(state, rung.config(), out)
    network = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    bits, n_bytes, _ = per_document(network, held_out)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    whole = "checkpoint_of" not in training
    card = {
        "name": out.name,
        "what": f"Llama, {rung.layers} layers, width {rung.width}, {rung.heads} heads, MLP {rung.mlp}, tied embedding, "
        f"{VOCABULARY} tokens: tokenizer, corpus and trainer of the demo network",
        "parameters": n_parameters,
        "weights_bytes": (out / "model.safetensors").stat().st_size,
        "training": training
        | {
            "flops": 6 * n_parameters * training["tokens"],
            "flops_is": "6 N tokens; N is all parameters, the tied embedding once as it is also the output matrix",
            "optimiser": f"Muon (lr {MUON_LR}) on hidden matrices, AdamW (lr {ADAM_LR}) on the rest",
            "annealed": f"learning rate falls linearly to zero over the last {ANNEAL:.0%}"
            if whole
            else "no: saved at the peak learning rate, so worse than a run of this length would be; in no fit",
            "tokens_per_step": ROWS * CONTEXT,
            "seed": SEED,
        },
        "python": platform.python_version(),
        "held_out_bits_per_byte": with_interval(bits, n_bytes)
        | {"interval": "95%, bootstrap over documents", "is": BITS_PER_BYTE_IS, "documents": len(bits)},
    }
    write_json(out / "card.json", card)
    print(f"{out.name}: {n_parameters:,} parameters, {card['training']['flops']:.3g} FLOPs, "
          f"{card['held_out_bits_per_byte']['value']} bits per byte", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("verb", choices=["train", "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and curves")
    parser.add_argument("--rungs", nargs="*", help="names of the rungs; default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="a quarter faster; needs a C++ compiler")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.verb == "train":
        train_all(asked.work, asked.rungs, asked.compile)
    else:
        export_all(asked.work, ROOT / "ladder")
