"""Toy models of superposition (Elhage et al. 2022): more features than dimensions, read back through a ReLU.

Tied weights and a bias that starts at 0: with a random one most seeds represent some of the features only.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, mean
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork
from understudy.organisms._training import learn

FREQUENCY = 0.05
PLACES = 64
STEPS = 5000


class Superposition(nn.Module):
    """x [batch, pos, n] -> embed [.., d] -> middle (an identity matrix, if any) -> ReLU(unembed) [.., n]."""

    def __init__(self, n: int, d: int, identity: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(n, d, bias=False)
        self.middle = nn.Linear(d, d, bias=False) if identity else nn.Identity()
        self.unembed, self.act = nn.Linear(d, n), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.unembed(self.middle(self.embed(x))))


def superposition_5_2(seed: int = 0, progress: Progress = SILENT) -> World:
    """5 features in 2 dimensions: a pentagon."""
    return _superposition("superposition_5_2", 5, 2, False, 2e-3, seed, progress)


def superposition_40_10(seed: int = 0, progress: Progress = SILENT) -> World:
    """40 features in 10 dimensions."""
    return _superposition("superposition_40_10", 40, 10, False, 4.4e-3, seed, progress)


def superposition_5_2_identity(seed: int = 0, progress: Progress = SILENT) -> World:
    """5 features in 2 dimensions with a hidden identity matrix between: a mechanism that is dense and does nothing."""
    return _superposition("superposition_5_2_identity", 5, 2, True, 2e-3, seed, progress)


def _superposition(
    name: str, n: int, d: int, identity: bool, good: float, seed: int, progress: Progress
) -> World:  # fmt: skip
    trained = learn(name.removesuffix("_identity"), seed, lambda: Superposition(n, d, False), _fit, STEPS, progress)
    module = Superposition(n, d, identity)
    with torch.no_grad():
        module.embed.weight.copy_(trained.get_parameter("embed.weight"))
        module.unembed.weight.copy_(trained.get_parameter("unembed.weight"))
        module.unembed.bias.copy_(trained.get_parameter("unembed.bias"))
        if isinstance(module.middle, nn.Linear):
            module.middle.weight.copy_(torch.eye(d))
    data = {"train": _data(n, 2048, 2 * seed), "held_out": _data(n, 256, 2 * seed + 1)}
    network = _network(name, module, data)
    checks = (
        Check("mean squared error", lambda: _error(network, data["held_out"]), at_most=good),
        Check("length of the shortest direction", lambda: _shortest(module), at_least=0.8),
        Check("features read back one at a time", lambda: _read_back(module, remove=False), at_least=1.0),
        Check("the same with their own direction removed", lambda: _read_back(module, remove=True), at_most=0.0),
    )
    planted = f"{n} sparse features share {d} dimensions and are read back through a ReLU"
    return World(name, planted, network, data, _truth(module, identity), checks, partial(_twin, network, data, seed))


def _truth(module: Superposition, identity: bool) -> Truth:
    W = module.embed.weight.detach()
    hidden = (Site("embed"), Site("unembed", "in"), *((Site("middle", "in"), Site("middle")) if identity else ()))
    inputs = [TrueFeature(f"x{i}", hidden, w) for i, w in enumerate(W.T)]
    outputs = [TrueFeature(f"y{i}", (Site("act"),), e, "output") for i, e in enumerate(torch.eye(W.shape[1]))]
    reads = (module.unembed.weight.detach() @ W).diagonal().tolist()
    edges = tuple(TrueEdge(f"x{i}", f"y{i}", w, "unembed") for i, w in enumerate(reads))
    facts = {"frequency": FREQUENCY, "hidden identity": identity}
    return Truth((*inputs, *outputs), edges, facts, lambda b: torch.cat([b.inputs["x"]] * 2, -1))


def _fit(module: nn.Module, generator: torch.Generator) -> Iterator[int]:
    """Mean squared error; the read-out is the transpose of the read-in at every step."""
    assert isinstance(module, Superposition)
    n = module.embed.in_features
    W, bias = module.embed.weight, module.unembed.bias
    with torch.no_grad():
        nn.init.xavier_normal_(W, generator=generator)
        bias.zero_()
    optimizer = torch.optim.AdamW([W, bias], lr=5e-3, weight_decay=0.01)
    for step in range(STEPS):
        x = _draw(1024, n, generator)
        loss = ((x @ W.T @ W + bias).relu() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            yield step
    with torch.no_grad():
        module.unembed.weight.copy_(W.T)


def _draw(rows: int, n: int, generator: torch.Generator) -> Tensor:
    on = torch.rand(rows, n, generator=generator) < FREQUENCY
    return on * torch.rand(rows, n, generator=generator)


def _data(n: int, sequences: int, seed: int) -> Listed:
    x = _draw(sequences * PLACES, n, _seeds.generator(seed)).view(sequences, PLACES, n)
    return Listed(Batch({"x": x}, torch.ones(x.shape[:2], dtype=torch.bool)))


def _network(name: str, module: Superposition, data: dict[str, Listed]) -> OrganismNetwork:
    sites = {"hidden": "embed", "read": "unembed:in", "out": "act"}
    return OrganismNetwork(module, name, data, sites, output="numbers")


@torch.no_grad()
def _error(network: Network, data: Listed) -> Measured:
    batch = data.batch(slice(0, len(data)))
    return mean((network.forward(batch) - batch.inputs["x"]).square().mean((1, 2)), "squared units")


def _shortest(module: Superposition) -> Measured:
    lengths = module.embed.weight.norm(dim=0)
    return exact(float(lengths.min()), "units", len(lengths))


@torch.no_grad()
def _read_back(module: Superposition, remove: bool) -> Measured:
    """Share of features that are the largest output when they are the only input."""
    n = module.embed.in_features
    hidden = module.embed(0.75 * torch.eye(n))
    if remove:
        unit = hidden / hidden.norm(dim=1, keepdim=True)
        hidden = hidden - (hidden * unit).sum(1, keepdim=True) * unit
    y = module.act(module.unembed(hidden))
    right = (y.argmax(1) == torch.arange(n)) & (y.diagonal() > 0.1)
    return exact(float(right.double().mean()), "fraction", n)


def _twin(network: Network, data: dict[str, Listed], seed: int) -> World:
    trained = network.module
    assert isinstance(trained, Superposition)
    d, n = trained.embed.weight.shape
    module = Superposition(n, d, isinstance(trained.middle, nn.Linear))
    generator = _seeds.generator(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    name = f"{network.name}-untrained"
    made = _network(name, module.eval(), data)
    zero = FREQUENCY / 3  # what an output of 0 costs: the mean of x squared
    checks = (Check("mean squared error", lambda: _error(made, data["held_out"]), at_least=zero),)
    return World(name, "nothing: random weights", made, data, Truth(), checks)
