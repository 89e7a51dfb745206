"""Train the demo network: a Llama of 2.2M parameters that has read the Python standard library.

    python recipes/demo_network.py --work FOLDER --compile            # under an hour on two cores
    python recipes/demo_network.py --work FOLDER --compile --resume   # carry on after a stop
    python recipes/demo_network_card.py --work FOLDER --out stdlib-2m # export, measure, write the card

This makes one fixture, `src/understudy/networks/demo/stdlib-2m/`, and is not a trainer of language models: everything
is fixed for that one network. The hidden matrices are trained by Muon (orthogonalised momentum), the embedding and the
norms by AdamW; the learning rate warms up, stays, and falls to zero over the last 60%, so that the weights kept at the
end are annealed ones.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from understudy.data.order import Order
from understudy.data.packing import Packed, pack, tokenise
from understudy.data.stdlib import Stdlib

SEED = 0
VOCABULARY = 2048
SEPARATOR = "<|endoftext|>"
CONTEXT = 256
ROWS = 16
BUDGET_TOKENS = 16_000_000
MUON_LR, ADAM_LR = 0.02, 4e-3
WEIGHT_DECAY = 0.05
WARM_UP, ANNEAL = 0.02, 0.6
"""Shares of the run over which the learning rate rises and falls."""
CURVE_POINTS = 48
CURVE_STRIDE = 4
"""The curve is measured on every fourth held-out row; the card's figure on all of them."""
CHECKPOINT_EVERY_S = 240


def config(width: int = 192, layers: int = 4, heads: int = 6, mlp: int = 512) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=mlp,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def llama(own: LlamaConfig | None = None) -> LlamaForCausalLM:
    """A network with random weights, the demo's unless another is asked for, that keeps no cache in training."""
    network = LlamaForCausalLM(config() if own is None else own)
    network.config.use_cache = False
    return network


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the training split, with one special token that opens every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((document.text for document in Stdlib("train")), trainer)
    return tokenizer


class Muon:
    """Momentum whose update is orthogonalised by a Newton-Schulz iteration; matrices of one shape go together.

    Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    momentum = 0.95

    def __init__(self, matrices: Sequence[Tensor]):
        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self.groups = [[matrix for matrix in matrices if matrix.shape == shape] for shape in shapes]
        self.velocity = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group, velocity in zip(self.groups, self.velocity, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonalised(gradient.lerp_(velocity, self.momentum))
            scale = lr * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - lr * WEIGHT_DECAY).add_(change, alpha=-scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Roughly U V' of each matrix's singular value decomposition; [n, rows, columns]."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def schedule(done: float) -> float:
    """Share of the peak learning rate when the share `done` of the run is over."""
    return min(1.0, (done + 1e-4) / WARM_UP, (1 - done) / ANNEAL)


def losses(network: nn.Module, packed: Packed, rows: Tensor | slice) -> Tensor:
    """Cross-entropy in nats of each target of the rows, 0 where there is none; [rows, context]."""
    batch = packed.batch(rows)
    assert batch.targets is not None
    return _losses(network, batch.inputs["input_ids"], batch.targets).view(batch.targets.shape)


def _losses(network: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(input_ids=tokens).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")


@torch.no_grad()
def bits_per_byte(network: nn.Module, packed: Packed) -> float:
    rows = torch.arange(0, len(packed), CURVE_STRIDE)
    nats = sum(float(losses(network, packed, chunk).sum()) for chunk in rows.split(32))
    return nats / math.log(2) / int(packed.scored_bytes(rows).sum())


def save(state: dict, path: Path) -> None:
    """Write beside, flush to the disk, then put in place: a kill leaves the old checkpoint or the new one, whole."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def train(
    work: Path,
    budget_tokens: int,
    resume: bool,
    compiled: bool,
    build: Callable[[], nn.Module] = llama,
    tokenizer_file: Path | None = None,
    keep: Sequence[int] = (),
    curve_points: int = CURVE_POINTS,
    cut: tuple[float, int] = (0.0, CONTEXT),
) -> None:
    """Train a network in `work`, which ends with `checkpoint.pt`, `curve.jsonl` and `tokenizer.json`.

    build: makes the network. tokenizer_file: None trains one. keep: weights are also kept, as `at-N.pt`, after the
    first step at which N training tokens are done, for each N given. cut: over this share of the run rows are cut into
    pieces of so many tokens, on which a recurrence takes fewer and larger steps.
    """
    torch.manual_seed(SEED)
    work.mkdir(parents=True, exist_ok=True)
    if not resume:
        own = train_tokenizer() if tokenizer_file is None else Tokenizer.from_file(str(tokenizer_file))
        own.save(str(work / "tokenizer.json"))
        (work / "curve.jsonl").unlink(missing_ok=True)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    packed = pack(tokenise(Stdlib("train"), tokenizer), CONTEXT)
    held_out = pack(tokenise(Stdlib("held_out"), tokenizer), CONTEXT)
    order = Order(len(packed), SEED)

    network = build()
    is_hidden = {name: p.ndim == 2 and "embed" not in name for name, p in network.named_parameters()}
    hidden = [p for name, p in network.named_parameters() if is_hidden[name]]
    others = [p for name, p in network.named_parameters() if not is_hidden[name]]
    muon, adam = Muon(hidden), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)

    forward = torch.compile(_losses) if compiled else _losses
    n_steps = budget_tokens // (ROWS * CONTEXT)
    first, wall_s = 0, 0.0
    if resume:
        state = torch.load(work / "checkpoint.pt", weights_only=True)
        network.load_state_dict(state["network"])
        adam.load_state_dict(state["adam"])
        muon.velocity = state["muon"]
        first, wall_s = state["step"], state["wall_s"]
        points = (work / "curve.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in points if json.loads(line)["tokens"] <= first * ROWS * CONTEXT]
        (work / "curve.jsonl").write_text("".join(kept))
    begun = saved = time.monotonic()
    curve_every = max(1, n_steps // curve_points)
    for step in range(first, n_steps):
        rate = schedule(step / n_steps)
        batch = packed.batch(order.batch(step, ROWS))
        assert batch.targets is not None
        width = cut[1] if step < cut[0] * n_steps else CONTEXT
        tokens, targets = batch.inputs["input_ids"].view(-1, width), batch.targets.view(-1, width)
        loss = forward(network, tokens, targets).sum() / (ROWS * CONTEXT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = ADAM_LR * rate
        muon.step(MUON_LR * rate)
        adam.step()
        network.zero_grad(set_to_none=True)

        over = step + 1 == n_steps
        for wanted in keep:
            if step * ROWS * CONTEXT < wanted <= (step + 1) * ROWS * CONTEXT:
                state = {"network": network.state_dict(), "tokens": (step + 1) * ROWS * CONTEXT}
                save(state, work / f"at-{wanted}.pt")
        if (step + 1) % curve_every == 0 or over:
            n_tokens = (step + 1) * ROWS * CONTEXT
            spent = wall_s + time.monotonic() - begun
            point = {"tokens": n_tokens, "bits_per_byte": bits_per_byte(network, held_out), "wall_s": round(spent, 1)}
            point |= {"train_nats_per_token": loss.item(), "tokens_per_s": round(n_tokens / spent)}
            with (work / "curve.jsonl").open("a") as file:
                file.write(json.dumps(point) + "\n")
            print(point, flush=True)
        if over or time.monotonic() - saved > CHECKPOINT_EVERY_S:
            saved = time.monotonic()
            state = {"network": network.state_dict(), "adam": adam.state_dict(), "muon": muon.velocity}
            save(state | {"step": step + 1, "wall_s": wall_s + saved - begun}, work / "checkpoint.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint and the curve")
    parser.add_argument("--tokens", type=int, default=BUDGET_TOKENS, help="length of the run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="carry on from the checkpoint in --work")
    parser.add_argument("--compile", action="store_true", help="a quarter faster; needs a C++ compiler")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    train(asked.work, asked.tokens, asked.resume, asked.compile)
