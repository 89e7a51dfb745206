"""Sparse parity: whether an odd number of three bits, of forty, is on.

The network answers from a random rotation of its bits, so that no axis gives them away. A parity is unrelated to every
one of its bits alone and to every pair, so nothing short of all three predicts it. Task: Barak et al. 2022
(arXiv:2207.08799). The twin has learned 512 answers by heart, drawn at random: it
too is right on its training data, and reads no bit more than another.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.world import Check, TrueFeature, Truth, World, mean, share
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork, hits
from understudy.organisms._planted import ACT, PART, READ, SITES, Planted
from understudy.organisms._training import learn

N_BITS, K, D_MLP = 40, 3, 128
PLACES, TRAIN, HELD_OUT = 64, 512, 64
"""Inputs a sequence, and sequences."""
STEPS, BATCH = 400, 1024
BY_HEART, HEART_STEPS = 8, 500
"""Sequences that the twin learns by heart, and the epochs it takes."""


def sparse_parity(seed: int = 0, progress: Progress = SILENT) -> World:
    """Which bits, depends on the seed."""
    return _build(seed, True, progress)


def support(seed: int) -> list[int]:
    """The bits whose parity is asked for."""
    return sorted(torch.randperm(N_BITS, generator=_seeds.generator(seed))[:K].tolist())


def _build(seed: int, parity: bool, progress: Progress) -> World:
    name = "sparse_parity" if parity else "sparse_parity-memorised"
    train = TRAIN if parity else BY_HEART
    data = {"train": _data(train, seed, 2 * seed, parity), "held_out": _data(HELD_OUT, seed, 2 * seed + 1, parity)}
    steps = STEPS if parity else HEART_STEPS
    module = learn(name, seed, partial(_module, seed), partial(_fit, seed=seed, parity=parity), steps, progress)
    network = OrganismNetwork(module, name, data, SITES, output="logits", parts=[PART])
    bits = support(seed)
    others = [i for i in range(N_BITS) if i not in bits]
    right = partial(_right, network)
    if not parity:
        checks = (
            Check("training answers right", lambda: right("train"), at_least=0.99),
            Check("held-out answers right", lambda: right("held_out"), at_most=0.55),
            Check("share of what neurons read that is the three bits", lambda: _read(network, bits), at_most=0.15),
        )
        return World(name, "nothing: answers at random, learned by heart", network, data, Truth(), checks)
    checks = (
        Check("held-out answers right", lambda: right("held_out"), at_least=0.99),
        Check("answers turned by turning one of the three", lambda: _turned(network, bits), at_least=0.99),
        Check("answers turned by turning another bit", lambda: _turned(network, others), at_most=0.01),
        Check("share of what neurons read that is the three bits", lambda: _read(network, bits), at_least=0.5),
        Check("held-out answers right with one of the three hidden", lambda: _hidden(network, bits), at_most=0.55),
    )
    line = f"the parity of bits {', '.join(map(str, bits))} of {N_BITS}"
    return World(name, line, network, data, _truth(seed, bits), checks, lambda: _build(seed, False, progress))


def _truth(seed: int, bits: list[int]) -> Truth:
    directions = _rotation(seed)[bits]
    names = [f"bit{i}" for i in bits]
    features = tuple(TrueFeature(n, (ACT, READ), v) for n, v in zip(names, directions))
    facts = {"bits": bits, "of": N_BITS}
    return Truth(features, (), facts, lambda batch: batch.inputs["x"][..., bits])


def _rotation(seed: int) -> Tensor:
    """[bit, direction]: orthonormal."""
    q, _ = torch.linalg.qr(torch.randn(N_BITS, N_BITS, generator=_seeds.generator(seed + 7)))
    return q.contiguous()


def _module(seed: int) -> Planted:
    made = Planted(N_BITS, N_BITS, D_MLP, 2)
    with torch.no_grad():
        made.embed.weight.copy_(_rotation(seed).T)
        made.embed.bias.zero_()
    made.embed.requires_grad_(False)
    return made


def _data(n: int, seed: int, draw: int, parity: bool) -> Listed:
    """n sequences of 64 inputs, -1 or 1 a bit; the targets are their parity, or drawn at random."""
    generator = _seeds.generator(draw)
    x, y = _draw((n, PLACES), support(seed), generator)
    if not parity:
        y = torch.randint(2, y.shape, generator=generator)
    return Listed(Batch({"x": x}, torch.ones(y.shape, dtype=torch.bool), y))


def _draw(shape: tuple[int, ...], bits: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randint(2, (*shape, N_BITS), generator=generator).float() * 2 - 1
    return x, (x[..., bits].prod(-1) > 0).long()


def _fit(module: nn.Module, generator: torch.Generator, *, seed: int, parity: bool) -> Iterator[int]:
    """Fresh inputs at every step; the twin sees the same few at every step, and has no weight decay."""
    bits, heart = support(seed), _data(BY_HEART, seed, 2 * seed, False).batch(slice(0, BY_HEART))
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1 if parity else 0.0)
    assert heart.targets is not None
    for step in range(STEPS if parity else HEART_STEPS):
        x, y = _draw((BATCH,), bits, generator) if parity else (heart.inputs["x"], heart.targets)
        loss = F.cross_entropy(module(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            yield step


def _right(network: Network, split: str) -> Measured:
    data = network.sequences(split)
    assert data is not None
    return share(*hits(network, data))


def _held_out(network: Network) -> Batch:
    data = network.sequences("held_out")
    assert data is not None
    return data.batch(slice(0, len(data)))


@torch.no_grad()
def _turned(network: Network, bits: list[int]) -> Measured:
    """Share of inputs whose answer changes when one bit does; mean over the bits, each on all held-out inputs."""
    batch, changed = _held_out(network), []
    before = network.forward(batch).argmax(-1)
    for i in bits:
        sign = torch.ones(N_BITS)
        sign[i] = -1
        after = network.forward(Batch({"x": batch.inputs["x"] * sign})).argmax(-1)
        changed.append((after != before).double().mean(1))
    return mean(torch.stack(changed).mean(0), "fraction")


@torch.no_grad()
def _hidden(network: Network, bits: list[int]) -> Measured:
    """Share of held-out answers right when one of the bits is 0 for all; mean over the bits."""
    batch, right = _held_out(network), []
    for i in bits:
        x = batch.inputs["x"].clone()
        x[..., i] = 0
        right.append((network.forward(Batch({"x": x})).argmax(-1) == batch.targets).double().mean(1))
    return mean(torch.stack(right).mean(0), "fraction")


@torch.no_grad()
def _read(network: Network, bits: list[int]) -> Measured:
    """Share of the squared weights into the neurons that lies on some bits. All bits alike: 3/40."""
    module = network.module
    assert isinstance(module, Planted)
    energy = (module.mlp.read.weight @ module.embed.weight).square().sum(0)
    return exact(float(energy[bits].sum() / energy.sum()), "fraction", D_MLP)
