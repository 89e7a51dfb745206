"""Synthetic activations: a sum of known features with the habits that make real ones hard to find.

Frequencies are log-uniform over two decades; some features come in pairs that fire together, some in families where a
child fires only with its parent, two are the axes of a circle that neither axis alone describes, two are always on.
"""

import math
from functools import partial

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, mean
from understudy.organisms import _seeds
from understudy.organisms._network import Drawn, OrganismNetwork
from understudy.organisms._planted import ACT, NEURONS, PART, READ, SITES, auroc, planted, unit

D = 48
PLACES = 64
N_LONE, N_PAIRS, N_FAMILIES, N_CHILDREN, N_DENSE = 80, 10, 5, 4, 2
LOW, HIGH = 0.002, 0.2
"""Range of the log-uniform frequencies."""
TOGETHER = 0.5
"""Chance that the second of a pair fires because the first does."""
CHILD = 0.8
"""Chance that some child fires with its parent; which one is uniform."""
CIRCLE = 0.1
"""How often the circle is there; its angle is uniform."""
THRESHOLD = 0.5

NAMES = (
    *(f"lone{i}" for i in range(N_LONE)),
    *(f"pair{i}.{j}" for i in range(N_PAIRS) for j in range(2)),
    *(f"parent{i}" for i in range(N_FAMILIES)),
    *(f"child{i}.{j}" for i in range(N_FAMILIES) for j in range(N_CHILDREN)),
    "circle.cos",
    "circle.sin",
    *(f"dense{i}" for i in range(N_DENSE)),
)
N_FREE = N_LONE + 2 * N_PAIRS + N_FAMILIES
"""Features with a frequency of their own."""
_FIRST = N_LONE
_PARENT = N_LONE + 2 * N_PAIRS
_CHILD = N_FREE
_CIRCLE = N_FREE + N_FAMILIES * N_CHILDREN


def synthetic(seed: int = 0) -> World:
    """A network whose `act` is the sum of features; a ReLU layer with a neuron for each reads it."""
    generator = _seeds.generator(seed)
    directions, frequencies = unit(len(NAMES), D, generator), _frequencies(generator)
    module = planted(directions, torch.randn(D, generator=generator) / 2, directions, THRESHOLD,
                     unit(len(NAMES), D, generator))  # fmt: skip
    draw = partial(_draw, frequencies)
    data = {"train": Drawn(8192, 2 * seed, draw), "held_out": Drawn(256, 2 * seed + 1, draw)}
    network = OrganismNetwork(module, "synthetic", data, SITES, output="numbers", parts=[PART])
    truth = _truth(directions, data["held_out"])
    sample = data["held_out"].batch(slice(0, 256)).inputs["x"]
    checks = (
        Check("features a place", lambda: mean((sample[..., :_CIRCLE] != 0).double().sum(-1).mean(1), "features"),
              at_most=12),
        Check("most frequent / least frequent", lambda: _span(frequencies), at_least=50),
        Check("children that fire with their parent", lambda: _children(sample), at_least=1.0),
        Check("neuron tells its feature (AUROC, mean)", lambda: _told(network, data["held_out"]), at_least=0.9),
        Check("excess kurtosis along lone features", lambda: _kurtosis(network, directions, data), at_least=1.0),
    )  # fmt: skip
    line = f"an activation of {D} numbers is a sum of {len(NAMES)} features: lone, paired, nested, circular, dense"
    return World("synthetic", line, network, data, truth, checks, lambda: _twin(world_network=network, data=data,
                 directions=directions, seed=seed))  # fmt: skip


def _frequencies(generator: torch.Generator) -> Tensor:
    p = (math.log(LOW) + math.log(HIGH / LOW) * torch.rand(N_FREE, generator=generator)).exp()
    p[:2] = torch.tensor([LOW, HIGH])
    return p


def _draw(frequencies: Tensor, generator: torch.Generator) -> Batch:
    def chance(*shape: int) -> Tensor:
        return torch.rand(PLACES, *shape, generator=generator)

    on = chance(N_FREE) < frequencies
    pairs = on[:, _FIRST:_PARENT].unflatten(1, (N_PAIRS, 2))
    pairs[..., 1] |= pairs[..., 0] & (chance(N_PAIRS) < TOGETHER)
    parents = on[:, _PARENT:]
    which = torch.randint(N_CHILDREN, parents.shape, generator=generator)
    born = parents & (chance(N_FAMILIES) < CHILD)
    children = torch.nn.functional.one_hot(which, N_CHILDREN).bool() & born[..., None]
    size = 1 + 0.25 * torch.randn(PLACES, _CIRCLE, generator=generator)
    angle = 2 * math.pi * chance(1)
    circle = (chance(1) < CIRCLE) * torch.cat([angle.cos(), angle.sin()], 1)
    dense = 0.5 * torch.randn(PLACES, N_DENSE, generator=generator)
    sparse = torch.cat([on, children.flatten(1)], 1) * size.clamp(min=0.25)
    return Batch({"x": torch.cat([sparse, circle, dense], 1)[None]})


def _truth(directions: Tensor, sample: Drawn) -> Truth:
    """Roles and frequencies of the features as facts; the dictionary is their directions."""
    features = [TrueFeature(n, (ACT, READ), v) for n, v in zip(NAMES, directions, strict=True)]
    neurons = [TrueFeature(f"reads {n}", (NEURONS,), e, "neuron") for n, e in zip(NAMES, torch.eye(len(NAMES)))]
    edges = tuple(TrueEdge(n, f"reads {n}", 1.0, "mlp") for n in NAMES)
    x = sample.batch(slice(0, len(sample))).inputs["x"]
    facts = {
        "frequency": dict(zip(NAMES, (x != 0).double().mean((0, 1)).tolist(), strict=True)),
        "pairs": [[f"pair{i}.0", f"pair{i}.1"] for i in range(N_PAIRS)],
        "families": {f"parent{i}": [f"child{i}.{j}" for j in range(N_CHILDREN)] for i in range(N_FAMILIES)},
        "planes": [["circle.cos", "circle.sin"]],
        "dense": [f"dense{i}" for i in range(N_DENSE)],
    }

    def values(batch: Batch) -> Tensor:
        x = batch.inputs["x"]
        return torch.cat([x, (x @ (directions @ directions.T) - THRESHOLD).relu()], -1)

    return Truth((*features, *neurons), edges, facts, values)


def _span(frequencies: Tensor) -> Measured:
    return exact(float(frequencies.max() / frequencies.min()), "ratio", len(frequencies))


def _children(x: Tensor) -> Measured:
    parents = x[..., _PARENT:_CHILD] != 0
    children = (x[..., _CHILD:_CIRCLE] != 0).unflatten(-1, (N_FAMILIES, N_CHILDREN))
    n = int(children.sum())
    return exact(int((children & parents[..., None]).sum()) / n, "fraction", n)


@torch.no_grad()
def _told(network: Network, data: Drawn) -> Measured:
    """How well each lone feature's neuron, before its threshold, tells the places where the feature is on."""
    batch = data.batch(slice(0, 256))
    x = batch.inputs["x"][..., :N_LONE].flatten(0, 1)
    pre = network.module.get_submodule("mlp.read")(network.module.get_submodule("embed")(batch.inputs["x"]))
    pre = pre[..., :N_LONE].flatten(0, 1)
    return mean(torch.tensor([auroc(p[v == 0], p[v != 0]) for p, v in zip(pre.T, x.T)]), "AUROC")


@torch.no_grad()
def _kurtosis(network: Network, directions: Tensor, data: dict[str, Drawn]) -> Measured:
    """Of `act` along the lone features, 0 for a Gaussian."""
    acts = network.record(data["held_out"].batch(slice(0, 256)), [ACT])[ACT].flatten(0, 1).double()
    y = acts @ directions[:N_LONE].T.double()
    y = (y - y.mean(0)) / y.std(0)
    return mean(y.pow(4).mean(0) - 3, "kurtosis")


@torch.no_grad()
def _twin(world_network: Network, data: dict[str, Drawn], directions: Tensor, seed: int) -> World:
    """Gaussian activations of the same mean and covariance: there is nothing to find but principal components."""
    acts = world_network.record(data["train"].batch(slice(0, 512)), [ACT])[ACT].flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(torch.cov(acts.T))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    module = planted(root.float(), acts.mean(0).float(), directions, THRESHOLD,
                     world_network.module.get_parameter("mlp.write.weight").T)  # fmt: skip

    def draw(generator: torch.Generator) -> Batch:
        return Batch({"x": torch.randn(1, PLACES, D, generator=generator)})

    own = {"train": Drawn(8192, 2 * seed, draw), "held_out": Drawn(256, 2 * seed + 1, draw)}
    network = OrganismNetwork(module, "synthetic-gaussian", own, SITES, output="numbers", parts=[PART])
    checks = (Check("excess kurtosis along lone features", lambda: _kurtosis(network, directions, own), at_most=0.1),)
    line = "nothing sparse: Gaussian activations of the same mean and covariance"
    return World("synthetic-gaussian", line, network, own, Truth(), checks)
