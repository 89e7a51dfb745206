"""Residual MLPs: x + ReLU(x) of a hundred features by fifty neurons, in two layers on a residual stream.

The features are given: random directions, which the network reads out along again. The neurons are fewer than the
features, and each serves several. Known as compressed computation (Braun et al. 2025, arXiv:2501.14926, section 3.3).
It is not computation in superposition: what it gains over fifty features done exactly, it gains from the small overlaps
of the directions (Bhagat et al., arXiv:2606.14673), so use it as a place to look for features and for the neurons that
serve them, not as evidence for that. The twin learned to give back x, for which no neuron is needed.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network, Part
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, mean
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork
from understudy.organisms._training import learn
from understudy.organisms._transformer import MLP

N, D, WIDTHS = 100, 1000, (25, 25)
FREQUENCY = 0.01
PLACES, STEPS, BATCH = 64, 500, 2048
EXACT = FREQUENCY / 12
"""Mean squared error of doing half of the features exactly and the others not at all: E[ReLU(x)^2] / 2."""
PROBE = 0.75


class ResidualMLPs(nn.Module):
    """x [batch, pos, N] -> embed -> stream [.., D] -> + mlp, twice -> read out along the same directions [.., N]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlps = nn.Linear(N, D, bias=False), nn.ModuleList(MLP(D, width) for width in WIDTHS)
        self.streams = nn.ModuleList(nn.Identity() for _ in WIDTHS)
        self.unembed = nn.Linear(D, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for mlp, stream in zip(self.mlps, self.streams):
            x = stream(x + mlp(x))
        return self.unembed(x)


def residual_mlps(seed: int = 0, progress: Progress = SILENT) -> World:
    """100 features in 1000 dimensions, 25 neurons in each of two layers."""
    return _build(seed, True, progress)


def _build(seed: int, computes: bool, progress: Progress) -> World:
    name = "residual_mlps" if computes else "residual_mlps-copy"
    fit = partial(_fit, computes=computes)
    module = learn(name, seed, _module, fit, STEPS, progress)
    assert isinstance(module, ResidualMLPs)
    data = {"train": _data(2048, 2 * seed), "held_out": _data(512, 2 * seed + 1)}
    named = {"embed": "embed"}
    for i in range(len(WIDTHS)):
        named |= {f"mlp_in.{i}": f"mlps.{i}:in", f"mlp_out.{i}": f"mlps.{i}", f"resid.{i}": f"streams.{i}"}
    parts = [Part(f"mlp.{i}", Site(f"mlps.{i}", "in"), Site(f"mlps.{i}")) for i in range(len(WIDTHS))]
    network = OrganismNetwork(module, name, data, named, output="numbers", parts=parts)
    if not computes:
        checks = (
            Check("share of ReLU(x) that is computed", lambda: _computed(network), at_most=0.05),
            Check("mean squared error of x", lambda: _error(network, computes=False), at_most=EXACT),
        )
        return World(name, "nothing: x is given back", network, data, Truth(), checks)
    serve = servers(module)
    checks = (
        Check("mean squared error, of half the features exactly", lambda: _gain(network), at_most=0.95),
        Check("share of ReLU(x) that is computed, mean of features", lambda: _computed(network), at_least=0.5),
        Check("the same of the worst feature", lambda: _worst(network), at_least=0.25),
        Check("features for each neuron", lambda: exact(N / sum(WIDTHS), "ratio", N), at_least=1.01),
        Check("share computed without a feature's own neurons", lambda: _without(network, serve), at_most=0.1),
        Check("share computed without as many others", lambda: _without(network, serve, others=True), at_least=0.4),
    )  # fmt: skip
    line = f"x + ReLU(x) of {N} features by {sum(WIDTHS)} neurons in two layers"
    return World(name, line, network, data, _truth(module, serve), checks, lambda: _build(seed, False, progress))


def _module() -> ResidualMLPs:
    made = ResidualMLPs()
    with torch.no_grad():
        W = torch.randn(N, D)
        W /= W.norm(dim=1, keepdim=True)
        made.embed.weight.copy_(W.T)
        made.unembed.weight.copy_(W)
        for mlp in made.mlps:
            assert isinstance(mlp, MLP)
            mlp.read.weight.normal_(0, D**-0.5)
            mlp.write.weight.normal_(0, D**-0.5)
            mlp.read.bias.zero_()
            mlp.write.bias.zero_()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.startswith("mlps") and name.endswith("weight"))
    return made


def _draw(rows: int, generator: torch.Generator) -> Tensor:
    """[rows, N]: each on at 1% of places, and then anything from -1 to 1."""
    on = torch.rand(rows, N, generator=generator) < FREQUENCY
    return on * (2 * torch.rand(rows, N, generator=generator) - 1)


def _data(sequences: int, seed: int) -> Listed:
    x = _draw(sequences * PLACES, _seeds.generator(seed)).view(sequences, PLACES, N)
    return Listed(Batch({"x": x}, torch.ones(x.shape[:2], dtype=torch.bool)))


def _fit(module: nn.Module, generator: torch.Generator, *, computes: bool) -> Iterator[int]:
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        x = _draw(BATCH, generator)
        loss = (module(x) - _wanted(x, computes)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            yield step


def _wanted(x: Tensor, computes: bool) -> Tensor:
    return x + x.relu() if computes else x


def contributions(module: ResidualMLPs) -> Tensor:
    """[neurons, features]: what a neuron adds to a feature's output for one unit of the feature alone, were it on:
    read weight x write weight along the feature's direction."""
    W = module.embed.weight
    return torch.cat([(m.read.weight @ W) * (W.T @ m.write.weight).T for m in module.mlps]).detach()  # pyright: ignore


def servers(module: ResidualMLPs) -> list[list[int]]:
    """Of each feature: the fewest neurons that hold nine tenths of what neurons add to it, largest first. Counted
    over both layers, the first layer first."""
    positive = contributions(module).clamp(min=0)
    values, order = positive.sort(dim=0, descending=True)
    total = values.sum(0)
    counts = torch.where(total > 0, (values.cumsum(0) < 0.9 * total).sum(0) + 1, 0)
    return [order[:n, i].tolist() for i, n in enumerate(counts.tolist())]


def _truth(module: ResidualMLPs, serve: list[list[int]]) -> Truth:
    stream = (Site("embed"), *(Site(f"mlps.{i}", "in") for i in range(len(WIDTHS))),
              *(Site(f"streams.{i}") for i in range(len(WIDTHS))))  # fmt: skip
    W = module.embed.weight.detach()
    inputs = [TrueFeature(f"x{i}", stream, v) for i, v in enumerate(W.T)]
    neurons, edges = [], []
    for layer, mlp in enumerate(module.mlps):
        assert isinstance(mlp, MLP)
        names = [f"neuron{layer}.{j}" for j in range(WIDTHS[layer])]
        neurons += [
            TrueFeature(n, (Site(f"mlps.{layer}.act"),), e, "neuron") for n, e in zip(names, torch.eye(len(names)))
        ]
        first, reads, writes = sum(WIDTHS[:layer]), mlp.read.weight.detach() @ W, W.T @ mlp.write.weight.detach()
        for i, own in enumerate(serve):
            for j in (n - first for n in own if first <= n < first + WIDTHS[layer]):
                edges.append(TrueEdge(f"x{i}", names[j], float(reads[j, i]), f"mlps.{layer}"))
                edges.append(TrueEdge(names[j], f"y{i}", float(writes[i, j]), f"mlps.{layer}"))
    outputs = [TrueFeature(f"y{i}", (Site("unembed"),), e, "output") for i, e in enumerate(torch.eye(N))]
    facts = {"frequency": FREQUENCY, "neurons of each feature": serve, "neurons": list(WIDTHS)}

    @torch.no_grad()
    def values(batch: Batch) -> Tensor:
        """Inputs and outputs from the plan; what neurons give, by the weights."""
        x, hidden = batch.inputs["x"], []
        stream = x @ W.T
        for mlp in module.mlps:
            assert isinstance(mlp, MLP)
            hidden.append(mlp.act(mlp.read(stream)))
            stream = stream + mlp.write(hidden[-1])
        return torch.cat([x, *hidden, _wanted(x, True)], -1)

    return Truth((*inputs, *neurons, *outputs), tuple(edges), facts, values)


@torch.no_grad()
def _error(network: Network, computes: bool = True) -> Measured:
    data = network.sequences("held_out")
    assert data is not None
    x = data.batch(slice(0, len(data))).inputs["x"]
    wanted = _wanted(x, computes)
    return mean((network.forward(Batch({"x": x})) - wanted).square().mean((1, 2)), "squared units")


def _gain(network: Network) -> Measured:
    """Error over that of fifty features done exactly and the others not at all. Below 1: neurons are shared."""
    error = _error(network)
    value, low, high = (v / EXACT for v in (error.value, error.low, error.high))
    return Measured(value=value, low=low, high=high, unit="ratio", n=error.n)


@torch.no_grad()
def _parts(network: Network, silent: list[list[int]] | None = None) -> Tensor:
    """[features]: (output - x) / x of each, alone at 3/4, its neurons in `silent` written as 0."""
    x = PROBE * torch.eye(N)[:, None]
    off = torch.ones(N, 1, sum(WIDTHS))
    for i, neurons in enumerate(silent or []):
        off[i, 0, neurons] = 0
    first, *rest = off.split(list(WIDTHS), -1)
    edits = {Site(f"mlps.{i}.act"): lambda v, call, part=part: v * part for i, part in enumerate([first, *rest])}
    with network.edited(edits):
        return network.forward(Batch({"x": x}))[:, 0].diagonal() / PROBE - 1


def _computed(network: Network) -> Measured:
    return mean(_parts(network), "fraction")


def _worst(network: Network) -> Measured:
    return exact(float(_parts(network).min()), "fraction", N)


def _without(network: Network, serve: list[list[int]], others: bool = False) -> Measured:
    """Mean share still computed when a feature's neurons, or as many random others, are silent."""
    if others:
        generator = _seeds.generator(1)
        serve = [
            [n for n in torch.randperm(sum(WIDTHS), generator=generator).tolist() if n not in own][: len(own)]
            for own in serve
        ]
    return mean(_parts(network, serve), "fraction")
