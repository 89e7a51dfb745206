"""Two equally sparse codes of one activation, of which only one is used downstream.

In each group of 4 dimensions the activation is a multiple of one of the 24 vectors (+-1, +-1, 0, 0) and permutations.
Each is the sum of two vectors of frame A (the axes, signed) and, just as exactly, of two of frame B (a Hadamard basis,
signed). The reflection H / 2 swaps A and B and leaves the distribution as it is: no method that sees the activation
alone can tell which of the two the network reads. The next layer reads A, one ReLU for each signed vector.

Under `two_codes` what the output loses does not tell either: with outputs that point all ways alike, a latent of A that
is left out costs as much as the best that one of B can do for its pair (a full miss, or four halves). Under
`two_codes_saturating` what is read rises a quarter as fast beyond CAP. Then a small amount where there should be
none costs 16 times as much as the same amount too little of what is there, and only A's latents keep to themselves.
"""

from functools import partial
from itertools import combinations, product

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, mean
from understudy.organisms import _seeds
from understudy.organisms._network import Drawn, OrganismNetwork
from understudy.organisms._planted import ACT, NEURONS, PART, READ, SITES, planted, unit

N_GROUPS = 12
FREQUENCY = 0.15
PLACES = 64
CHANCE = 0.5
CAP, SLOPE = 0.25, 0.25
"""`two_codes_saturating`: values beyond CAP (all are above 0.5) are read at SLOPE."""
_HADAMARD = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
FRAMES = {"A": torch.eye(4), "B": _HADAMARD / 2}
"""Rows are orthonormal; a code's latents are they and their negatives."""
SWAP = _HADAMARD / 2
"""Its own inverse."""
_TIE = 1e-4


def two_codes(seed: int = 0, used: str = "A") -> World:
    """used: the code that the next layer reads."""
    return _two_codes("two_codes", seed, used, saturating=False)


def two_codes_saturating(seed: int = 0, used: str = "A") -> World:
    """The same activations; the next layer reads less and less of what it reads."""
    return _two_codes("two_codes_saturating", seed, used, saturating=True)


def _two_codes(name: str, seed: int, used: str, saturating: bool) -> World:
    basis, code = _basis(seed), _code(used, seed)
    write = unit(len(code), len(basis), _seeds.generator(seed + 1))
    read, thresholds = code, torch.zeros(len(code))
    if saturating:  # a second neuron of each vector takes back most of what the first adds beyond CAP
        read, write = torch.cat([code, code]), torch.cat([write, (SLOPE - 1) * write])
        thresholds = torch.cat([thresholds, thresholds + CAP])
    module = planted(basis, torch.zeros(len(basis)), read, thresholds, write)
    data = {"train": Drawn(4096, 2 * seed, _draw), "held_out": Drawn(256, 2 * seed + 1, _draw)}
    network = OrganismNetwork(module, name, data, SITES, output="numbers", parts=[PART])
    names = [f"{used}{g}.{i}{sign}" for g in range(N_GROUPS) for i in range(4) for sign in "+-"]
    features = [TrueFeature(n, (ACT, READ), v) for n, v in zip(names, code, strict=True)]
    readers = [(n, f"reads {n}") for n in names] + [(n, f"caps {n}") for n in names if saturating]
    neurons = [TrueFeature(r, (NEURONS,), e, "neuron") for (_, r), e in zip(readers, torch.eye(len(readers)))]
    edges = tuple(TrueEdge(n, r, 1.0, "mlp") for n, r in readers)
    values = partial(_values, basis=basis, code=code, saturating=saturating)
    truth = Truth((*features, *neurons), edges, {"code used": used}, values)
    checks = (
        Check("latents a place in code A", lambda: _l0(data["held_out"], "A"), at_most=2 * N_GROUPS * FREQUENCY * 1.1),
        Check("the same in code B, less those in A", lambda: _l0_difference(data["held_out"]), around=0.0),
        Check("output changed by swapping the codes", lambda: _swapped(network, seed), at_least=0.1),
        Check("fourth moments changed by swapping", lambda: _moments(data["held_out"]), at_most=0.05),
        Check("code of the neurons that read", lambda: which_code(module.mlp.read.weight, seed), at_least=0.99),
    )
    line = "an activation has two equally sparse codes; the next layer reads one of them"
    twin = partial(_twin, name, seed, saturating) if used == "A" else None
    return World(name, line, network, data, truth, checks, twin)


def which_code(directions: Float[Tensor, "m d"], seed: int = 0) -> Measured:
    """Which code some directions belong to: 1 all of A, 0 all of B, 0.5 chance. What to compare is `act`'s directions:
    an SAE's decoder rows, a transcoder's encoder rows.

    In each group a direction votes for the code that holds the vector nearest in angle (half a vote each where they
    are equally near), weighted by its share of squared length in the group. The figure is the mean over groups, which
    are independent, with a normal interval. At chance: the interval holds 0.5.
    """
    coordinates = (directions @ _basis(seed).T).unflatten(-1, (N_GROUPS, 4))
    squared = coordinates.square().sum(-1)
    near_A, near_B = ((coordinates @ FRAMES[c].T).abs().amax(-1) / squared.sqrt().clamp(min=1e-12) for c in "AB")
    votes = 0.5 + 0.5 * (near_A - near_B > _TIE).float() - 0.5 * (near_B - near_A > _TIE).float()
    weight = squared / squared.sum(-1, keepdim=True)
    return mean((votes * weight).sum(0) / weight.sum(0).clamp(min=1e-12), "fraction")


def chance(n_latents: int, seed: int = 0, draws: int = 200) -> Measured:
    """What `which_code` gives for random directions: the middle 95% of `draws` sets of `n_latents`."""
    generator = _seeds.generator(seed + 2)
    scores = [which_code(unit(n_latents, 4 * N_GROUPS, generator), seed).value for _ in range(draws)]
    low, high = torch.tensor(scores).quantile(torch.tensor([0.025, 0.975])).tolist()
    middle = sum(scores) / draws
    return Measured(value=middle, low=min(low, middle), high=max(high, middle), unit="fraction", n=draws)


def _basis(seed: int) -> Tensor:
    """Orthonormal rows: the direction of each coordinate of each group in `act`."""
    d = 4 * N_GROUPS
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=_seeds.generator(seed), dtype=torch.float64))
    return q.T.float().contiguous()


def _code(name: str, seed: int) -> Tensor:
    """[8 x groups, d]: each group's signed vectors."""
    rows = torch.stack([s * v for v in FRAMES[name] for s in (1, -1)])
    return torch.einsum("ki,gid->gkd", rows, _basis(seed).unflatten(0, (N_GROUPS, 4))).flatten(0, 1)


def _roots() -> Tensor:
    rows = []
    for (i, j), (a, b) in product(combinations(range(4), 2), product((1.0, -1.0), repeat=2)):
        rows.append(torch.zeros(4).index_copy(0, torch.tensor([i, j]), torch.tensor([a, b])))
    return torch.stack(rows)


ROOTS = _roots()


def _draw(generator: torch.Generator) -> Batch:
    shape = (1, PLACES, N_GROUPS)
    on = torch.rand(shape, generator=generator) < FREQUENCY
    size = on * (0.5 + torch.rand(shape, generator=generator))
    which = torch.randint(24, shape, generator=generator)
    return Batch({"x": (size[..., None] * ROOTS[which]).flatten(-2)})


def _values(batch: Batch, basis: Tensor, code: Tensor, saturating: bool) -> Tensor:
    on = (batch.inputs["x"] @ basis @ code.T).relu()
    return torch.cat([on, on, *([(on - CAP).relu()] if saturating else [])], -1)


def _counts(data: Drawn, code: str) -> Tensor:
    """Latents of a code that are on, mean over the places of each sequence."""
    x = data.batch(slice(0, len(data))).inputs["x"].unflatten(-1, (N_GROUPS, 4))
    return ((x @ FRAMES[code].T).abs() > 1e-4).double().sum((-1, -2)).mean(1)


def _l0(data: Drawn, code: str) -> Measured:
    return mean(_counts(data, code), "latents")


def _l0_difference(data: Drawn) -> Measured:
    return mean(_counts(data, "B") - _counts(data, "A"), "latents")


@torch.no_grad()
def _swapped(network: Network, seed: int) -> Measured:
    """Share of the output's variance that changes when A and B trade places in every group of `act`."""
    batch, basis = network.example(), _basis(seed)

    def swap(value: Tensor, call: int) -> Tensor:
        return ((value @ basis.T).unflatten(-1, (N_GROUPS, 4)) @ SWAP).flatten(-2) @ basis

    before = network.forward(batch)
    with network.edited({ACT: swap}):
        after = network.forward(batch)
    change = (after - before).square().sum() / (before - before.mean((0, 1))).square().sum()
    return exact(float(change), "fraction", batch.n_sequences)


def _moments(data: Drawn) -> Measured:
    """Largest change of a group's fourth moments under the swap, against their largest: 0 without sampling error."""
    x = data.batch(slice(0, len(data))).inputs["x"].reshape(-1, 4).double()
    moments = [torch.einsum("ni,nj->ij", y.square(), y.square()) for y in (x, x @ SWAP.double())]
    return exact(float((moments[1] - moments[0]).abs().max() / moments[0].max()), "fraction", len(data))


def _twin(name: str, seed: int, saturating: bool) -> World:
    """The other code is used: what says A here is wrong."""
    world = _two_codes(name, seed, "B", saturating)
    checks = (
        Check(
            "code of the neurons that read",
            lambda: which_code(world.network.module.get_parameter("mlp.read.weight"), seed), at_most=0.01,
        ),
    )  # fmt: skip
    return World(f"{name}-B", "the same activations; the next layer reads code B", world.network, world.data,
                 world.truth, checks)  # fmt: skip
