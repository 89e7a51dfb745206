"""Universal AND: every pair of inputs, computed by fewer neurons than pairs, with weights made by hand.

Each neuron reads a random set of inputs and fires with how many of them are on, less one; the AND of a pair is the mean
of the neurons that read both. Source: Haenni, Mendel, Vaintrob and Chan 2024 (arXiv:2408.05451), section 3, as a
construction; the sets are redrawn until every pair has enough neurons. Right for inputs with at most 2 on.
"""

from itertools import combinations

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World
from understudy.organisms import _seeds
from understudy.organisms._compile import shuffled
from understudy.organisms._network import Drawn, OrganismNetwork
from understudy.organisms._planted import ACT, NEURONS, PART, READ, SITES, WRITE, planted

N_INPUTS, N_NEURONS = 24, 200
DENSITY = 0.3
"""Share of inputs that a neuron reads."""
PLACES = 64
PAIRS = list(combinations(range(N_INPUTS), 2))


def universal_and(seed: int = 0) -> World:
    """276 ANDs by 200 neurons."""
    reads = _reads(seed)
    both = torch.stack([reads[:, i] * reads[:, j] for i, j in PAIRS], 1)
    write = both / both.sum(0)
    module = planted(torch.eye(N_INPUTS), torch.zeros(N_INPUTS), reads, 1.0, write)
    data = {"train": Drawn(2048, 2 * seed, _draw), "held_out": Drawn(256, 2 * seed + 1, _draw)}
    network = _network("universal_and", module, data)
    checks = (
        Check("ANDs right on all inputs with at most 2 on", lambda: _right(network), at_least=1.0),
        Check("neurons for each AND", lambda: exact(N_NEURONS / len(PAIRS), "ratio", len(PAIRS)), at_most=0.99),
        Check("true ANDs right without the neurons that read both", lambda: _without(network, both), at_most=0.0),
    )
    line = f"{len(PAIRS)} ANDs of {N_INPUTS} inputs by {N_NEURONS} neurons that each read many inputs"

    def twin() -> World:
        made = _network("universal_and-shuffled", planted(torch.eye(N_INPUTS), torch.zeros(N_INPUTS), reads, 1.0,
                        write), data)  # fmt: skip
        shuffled(made.module.get_submodule("mlp"), seed + 1)
        mark = Check("ANDs right on all inputs with at most 2 on", lambda: _right(made), at_most=0.5)
        return World(made.name, "nothing: the MLP's weights permuted", made, data, Truth(), (mark,))

    return World("universal_and", line, network, data, _truth(reads, write), checks, twin)


def _reads(seed: int) -> Tensor:
    """[neurons, inputs] of 0 and 1, such that one of a pair with any third input reaches at most 0.75 of the AND."""
    generator = _seeds.generator(seed)
    for _ in range(1000):
        reads = (torch.rand(N_NEURONS, N_INPUTS, generator=generator) < DENSITY).float()
        both = torch.stack([reads[:, i] * reads[:, j] for i, j in PAIRS], 1)
        third = (both.T @ reads) / both.sum(0)[:, None].clamp(min=1)
        for row, (i, j) in zip(third, PAIRS):
            row[[i, j]] = 0
        if both.sum(0).min() > 0 and third.max() < 0.75:
            return reads
    raise AssertionError("no set of readers was found")


def _draw(generator: torch.Generator) -> Batch:
    """0, 1 or 2 inputs on."""
    picked = torch.rand(PLACES, N_INPUTS, generator=generator).argsort(-1)[:, :2]
    keep = torch.rand(PLACES, 2, generator=generator) < torch.tensor([0.9, 0.7])
    return Batch({"x": torch.zeros(PLACES, N_INPUTS).scatter(1, picked, keep.float())[None]})


def _network(name: str, module: torch.nn.Module, data: dict[str, Drawn]) -> OrganismNetwork:
    return OrganismNetwork(module, name, data, SITES, output="numbers", parts=[PART])


def _truth(reads: Tensor, write: Tensor) -> Truth:
    inputs = [TrueFeature(f"x{i}", (ACT, READ), v) for i, v in enumerate(torch.eye(N_INPUTS))]
    neurons = [TrueFeature(f"neuron{i}", (NEURONS,), v, "neuron") for i, v in enumerate(torch.eye(N_NEURONS))]
    names = [f"x{i} and x{j}" for i, j in PAIRS]
    outputs = [TrueFeature(n, (WRITE,), v, "output") for n, v in zip(names, torch.eye(len(PAIRS)))]
    edges = [TrueEdge(f"x{i}", f"neuron{k}", 1.0, "mlp") for k, i in reads.nonzero().tolist()]
    edges += [TrueEdge(f"neuron{k}", names[p], float(write[k, p]), "mlp") for k, p in write.nonzero().tolist()]

    def values(batch: Batch) -> Tensor:
        x = batch.inputs["x"]
        ands = torch.stack([x[..., i] * x[..., j] for i, j in PAIRS], -1)
        return torch.cat([x, (x @ reads.T - 1).relu(), ands], -1)

    return Truth((*inputs, *neurons, *outputs), tuple(edges), {"pairs": len(PAIRS)}, values)


def _every() -> tuple[Batch, Tensor]:
    """All inputs with at most 2 on, as one sequence, and which ANDs are true."""
    one = torch.eye(N_INPUTS)
    x = torch.cat([torch.zeros(1, N_INPUTS), one, torch.stack([one[i] + one[j] for i, j in PAIRS])])
    ands = torch.stack([x[:, i] * x[:, j] for i, j in PAIRS], -1) > 0
    return Batch({"x": x[None]}), ands


@torch.no_grad()
def _right(network: Network) -> Measured:
    batch, ands = _every()
    said = network.forward(batch)[0] > 0.75
    return exact(float((said == ands).all(-1).double().mean()), "fraction", len(ands))


@torch.no_grad()
def _without(network: Network, both: Tensor) -> Measured:
    """Share of pairs whose AND still shows once the neurons that read both are silenced."""
    batch, _ = _every()
    kept = 0
    for p in range(len(PAIRS)):
        row = Batch({"x": batch.inputs["x"][:, [1 + N_INPUTS + p]]})
        with network.edited({NEURONS: lambda v, call, p=p: v * (both[:, p] == 0)}):
            kept += int(network.forward(row)[0, 0, p] > 0.75)
    return exact(kept / len(PAIRS), "fraction", len(PAIRS))
