"""Modular addition that has grokked: (a + b) mod 59 through a few frequencies.

One layer, no norms, full batch, weight decay 1: the network first memorises, then finds trigonometric identities.
Progress measures after Nanda et al. 2023 (arXiv:2301.05217): restricted and excluded loss. Weights of every hundredth
epoch are kept with the last ones, in half precision, so that the measures can be seen through training. The twin has no
weight decay and memorises.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, Truth, World, share
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork, hits
from understudy.organisms._training import learn
from understudy.organisms._transformer import Transformer, parts, sites, transformer

P = 59
STEPS, AFTER, MEMORISE = 2500, 500, 300
"""Epochs at most; epochs after the test set is solved; epochs of the twin."""
EVERY = 100
"""Epochs from one checkpoint to the next."""
_ACT = Site("blocks.0.mlp.act")
KEY = 0.1
"""A frequency is key if at least this share of the neurons has most of its variance there."""


def modular_addition(seed: int = 0, progress: Progress = SILENT) -> World:
    """Which frequencies are in use is read from the neurons and checked on the outputs; it depends on the seed."""
    return _build(seed, True, progress)


def _build(seed: int, decay: bool, progress: Progress) -> World:
    name = "modular_addition" if decay else "modular_addition-memorised"
    steps = STEPS if decay else MEMORISE
    fit = partial(_fit, seed=seed, weight_decay=1.0 if decay else 0.0, steps=steps)
    module = learn(name, seed, _module, fit, steps, progress)
    assert isinstance(module, Transformer)
    train, held_out = _data(seed)
    data = {"train": train, "held_out": held_out}
    network = OrganismNetwork(
        module, name, data, sites(module), output="logits", parts=parts(module),
        aside=("embed", "positions", "unembed"), head="unembed", context=3,
    )  # fmt: skip
    right = partial(_right, network, data["held_out"])
    if not decay:
        checks = (
            Check("training sums right", lambda: _right(network, data["train"]), at_least=0.99),
            Check("held-out sums right", right, at_most=0.5),
        )
        return World(name, "nothing: memorised, without weight decay", network, data, Truth(), checks)
    keys = key_frequencies(network)
    curve = [vars(p) for p in through_training(network, keys)]
    checks = (
        Check("held-out sums right", right, at_least=0.99),
        Check("key frequencies", lambda: exact(len(keys), "frequencies", P // 2), at_most=8),
        Check("restricted loss / loss", lambda: _restricted(network, keys), at_most=1.0),
        Check("excluded loss on training sums", lambda: excluded_loss(network, keys, data["train"]), at_least=1.0),
    )
    truth = Truth(facts={"p": P, "key frequencies": keys, "through training": curve})
    line = f"(a + b) mod {P} by {len(keys)} frequencies"
    return World(name, line, network, data, truth, checks, lambda: _build(seed, False, progress))


def _network(module: Transformer, name: str, data: Mapping[str, Sequences]) -> OrganismNetwork:
    return OrganismNetwork(
        module, name, data, sites(module), output="logits", parts=parts(module),
        aside=("embed", "positions", "unembed"), context=3,
    )  # fmt: skip


def _module() -> Transformer:
    """Small weights at the start: with torch's usual ones it still memorises after 4000 epochs. Buffers: `epochs` of
    the checkpoints, -1 where training ended before, and `past`, all parameters of each."""
    made = transformer(P + 1, 3, P, 64, 1, 4, 256, causal=True, norm=False)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 64**-0.5)
            else:
                parameter.zero_()
        made.get_parameter("blocks.0.attn.q.weight").mul_(16**-0.5)
    size = sum(p.numel() for p in made.parameters())
    made.register_buffer("epochs", torch.full((STEPS // EVERY + 1,), -1))
    made.register_buffer("past", torch.zeros(STEPS // EVERY + 1, size, dtype=torch.float16))
    return made


def _keep(module: nn.Module, epoch: int) -> None:
    i = epoch // EVERY
    module.get_buffer("epochs")[i] = epoch
    module.get_buffer("past")[i] = parameters_to_vector(module.parameters()).detach().half()


def _data(seed: int) -> tuple[Listed, Listed]:
    """Half of all sums, and the other half. Inputs are a, b and a mark; the target is at the mark."""
    order = torch.randperm(P * P, generator=_seeds.generator(seed))
    half = P * P // 2
    return _listed(order[:half]), _listed(order[half:])


def _listed(pairs: Tensor) -> Listed:
    a, b = pairs // P, pairs % P
    ids = torch.stack([a, b, torch.full_like(a, P)], 1)
    targets = torch.full_like(ids, -100)
    targets[:, 2] = (a + b) % P
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2] = True
    return Listed(Batch({"input_ids": ids}, mask, targets))


def _fit(module: nn.Module, generator: torch.Generator, *, seed: int, weight_decay: float, steps: int) -> Iterator[int]:
    train, test = (d.batch(slice(0, len(d))) for d in _data(seed))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    solved = None
    for step in range(steps):
        if step % EVERY == 0:
            _keep(module, step)
        loss = _loss(module(**train.inputs), train)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            yield step
            with torch.no_grad():
                assert test.targets is not None
                right = module(**test.inputs)[:, 2].argmax(-1) == test.targets[:, 2]
            solved = step if solved is None and right.double().mean() > 0.995 else solved
            if solved is not None and step >= solved + AFTER:
                return


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """In float64: in float32 the loss of a solved sum is rounded to 0, and training then jumps."""
    assert batch.targets is not None
    return F.cross_entropy(logits[:, 2].double(), batch.targets[:, 2])


def _right(network: Network, data: Listed) -> Measured:
    return share(*hits(network, data))


def _every() -> Batch:
    return _listed(torch.arange(P * P)).batch(slice(0, P * P))


@torch.no_grad()
def key_frequencies(network: Network) -> list[int]:
    """Frequencies that hold most of the variance, over all sums, of at least a tenth of the neurons."""
    neurons = network.record(_every(), [_ACT])[_ACT][:, 2].unflatten(0, (P, P)).double()
    power = torch.fft.fft2(neurons - neurons.mean((0, 1)), dim=(0, 1)).abs().square()
    by_frequency = []
    for k in range(1, P // 2 + 1):
        rows = [0, k, P - k]
        by_frequency.append(power[rows][:, rows].sum((0, 1)))
    best = torch.stack(by_frequency) / power.sum((0, 1)).clamp(min=1e-12)
    counts = torch.bincount(best.argmax(0)[best.amax(0) > 0.5], minlength=P // 2)
    return [k + 1 for k, c in enumerate(counts.tolist()) if c >= KEY * neurons.shape[-1]]


def _waves(keys: list[int]) -> Tensor:
    """Orthonormal functions of (a, b), [p * p, 2 x keys]: cos and sin of w (a + b)."""
    a = torch.arange(P, dtype=torch.float64)
    total = (a[:, None] + a).flatten()
    columns = [f(2 * math.pi * k * total / P) for k in keys for f in (torch.cos, torch.sin)]
    return torch.stack(columns, 1) * math.sqrt(2) / P


@torch.no_grad()
def _logits(network: Network) -> Tensor:
    return network.forward(_every())[:, 2].double()


def restricted_loss(network: Network, keys: list[int]) -> Measured:
    """Nats a sum, over all sums, with only the key waves of the logits kept, and their mean."""
    logits = _logits(network)
    kept = logits.mean(0) + _key_part(logits, keys)
    return exact(float(_cross_entropy(kept)), "nats", P * P)


def excluded_loss(network: Network, keys: list[int], data: Listed) -> Measured:
    """Nats a sum of `data` with the key waves taken out of the logits."""
    logits, rows = _logits(network), _pairs(data)
    return exact(float(_cross_entropy((logits - _key_part(logits, keys))[rows], rows)), "nats", len(rows))


def _key_part(logits: Tensor, keys: list[int]) -> Tensor:
    waves = _waves(keys)
    return waves @ (waves.T @ logits)


def _pairs(data: Listed) -> Tensor:
    """Of each sum: a p + b."""
    ids = data.batch(slice(0, len(data))).inputs["input_ids"]
    return ids[:, 0] * P + ids[:, 1]


@dataclass(frozen=True)
class Point:
    """One checkpoint. Losses in nats a sum; all by the key frequencies of the end of training."""

    epoch: int
    train_loss: float
    held_out_loss: float
    held_out_right: float
    """Share of held-out sums."""
    restricted_loss: float
    """Over all sums: how far the answer can be told from the key waves of the logits alone."""
    excluded_loss: float
    """Over training sums: how far it can be told without them."""


def checkpoints(network: Network) -> list[tuple[int, OrganismNetwork]]:
    """Epoch and network of each checkpoint; the network itself, later than the last of them, is not among them."""
    module, made = network.module, []
    data = {split: found for split in ("train", "held_out") if (found := network.sequences(split)) is not None}
    epochs, past = module.get_buffer("epochs").tolist(), module.get_buffer("past")
    for epoch, weights in zip(epochs, past):
        if epoch >= 0:
            then = _module()
            vector_to_parameters(weights.float(), then.parameters())
            made.append((epoch, _network(then.eval(), f"{network.name}@{epoch}", data)))
    return made


def through_training(network: Network, keys: list[int]) -> list[Point]:
    """The progress measures at every checkpoint (Nanda et al. 2023, section 5.1)."""
    return [_point(epoch, then, keys) for epoch, then in checkpoints(network)]


def _point(epoch: int, network: Network, keys: list[int]) -> Point:
    train, held_out = (network.sequences(s) for s in ("train", "held_out"))
    assert isinstance(train, Listed)
    assert isinstance(held_out, Listed)
    logits = _logits(network)
    first, second = _pairs(train), _pairs(held_out)
    right = logits[second].argmax(1) == (second // P + second % P) % P
    without = logits - _key_part(logits, keys)
    kept = logits.mean(0) + logits - without
    return Point(
        epoch=epoch,
        train_loss=float(_cross_entropy(logits[first], first)),
        held_out_loss=float(_cross_entropy(logits[second], second)),
        held_out_right=float(right.double().mean()),
        restricted_loss=float(_cross_entropy(kept)),
        excluded_loss=float(_cross_entropy(without[first], first)),
    )


def _restricted(network: Network, keys: list[int]) -> Measured:
    full = float(_cross_entropy(_logits(network)))
    return exact(restricted_loss(network, keys).value / full, "ratio", P * P)


def _cross_entropy(logits: Tensor, rows: Tensor | None = None) -> Tensor:
    rows = torch.arange(P * P) if rows is None else rows
    return F.cross_entropy(logits, (rows // P + rows % P) % P)
