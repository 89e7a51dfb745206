"""Z = 3A + 4B, or 10C + 20D: a feature that can fire for a reason it never had.

In training Z fires because of A and B. C and D are as frequent, never together. In `new_reason` both are on and Z
takes an everyday value: nothing is unusual but why. In `novel_pair` Z fires for its usual reason while two sources that
never met are on too: a monitor of reasons must not mind.
"""

from functools import partial

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, share
from understudy.organisms import _seeds
from understudy.organisms._network import Drawn, OrganismNetwork
from understudy.organisms._planted import ACT, NEURONS, PART, READ, SITES, auroc, planted, unit

N_SOURCES, N_TARGETS, N_READ = 100, 20, 8
PLACES = 8
LETTERS = "ABCDEF"
WEIGHTS = {"A": 3.0, "B": 4.0, "C": 10.0, "D": 20.0}
THRESHOLDS = {"Z": 25.0, "other": 4.0}
BACKGROUND = 0.06
"""How often any other source is on."""
FREQUENT = 0.15
"""How often A and B are on together, C alone, and so on."""


def new_reasons(seed: int = 0) -> World:
    """Sources are axes of a rotated `act`; targets are the neurons that read them."""
    return _build(seed, WEIGHTS)


def _build(seed: int, weights: dict[str, float]) -> World:
    generator = _seeds.generator(seed)
    q, _ = torch.linalg.qr(torch.randn(N_SOURCES, N_SOURCES, generator=generator))
    W = _weights(weights, generator)
    thresholds = torch.tensor([THRESHOLDS["Z"], *[THRESHOLDS["other"]] * (N_TARGETS - 1)])
    write = unit(N_TARGETS, N_SOURCES, generator)
    module = planted(q.T.contiguous(), torch.zeros(N_SOURCES), W @ q.T, thresholds, write)
    kinds = {"train": (4096, "train"), "held_out": (512, "train")}
    kinds |= {kind: (512, kind) for kind in ("usual", "new_reason", "novel_pair")}
    data = {name: Drawn(n, 10 * seed + i, partial(_draw, kind)) for i, (name, (n, kind)) in enumerate(kinds.items())}
    twin = None if weights is not WEIGHTS else partial(_twin, seed)
    name = "new_reasons" if twin else "new_reasons-unwired"
    network = OrganismNetwork(module, name, data, SITES, output="numbers", parts=[PART])
    checks = _checks(network, data) if twin else (
        Check("places of `new_reason` where Z fires", lambda: _fires(network, data["new_reason"]), at_most=0.0),
    )  # fmt: skip
    line = "Z = 3A + 4B in training; in one split Z = 10C + 20D" if twin else "Z = 3A + 4B only: C and D are not read"
    return World(name, line, network, data, _truth(q.T, W, thresholds), checks, twin)


def _checks(network: Network, data: dict[str, Drawn]) -> tuple[Check, ...]:
    return (
        Check("places of training where C and D meet", lambda: _meet(data["train"]), at_most=0.0),
        Check("places of `usual` where Z fires", lambda: _fires(network, data["usual"]), at_least=0.95),
        Check("places of `new_reason` where Z fires", lambda: _fires(network, data["new_reason"]), at_least=0.95),
        Check("new reason told by Z's value (AUROC)", lambda: _told(network, data, _z), at_most=0.75),
        Check("new reason told by Z's edges (AUROC)", lambda: _told(network, data, _share_of_new), at_least=0.99),
    )


def _weights(weights: dict[str, float], generator: torch.Generator) -> Tensor:
    """[targets, sources]: row 0 is Z; the others read 8 sources each, none of the lettered ones."""
    W = torch.zeros(N_TARGETS, N_SOURCES)
    for letter, w in weights.items():
        W[0, LETTERS.index(letter)] = w
    n = len(LETTERS)
    for row in W[1:]:
        row[n + torch.randperm(N_SOURCES - n, generator=generator)[:N_READ]] = 1 + 5 * torch.rand(
            N_READ, generator=generator
        )
    return W


def _draw(kind: str, generator: torch.Generator) -> Batch:
    def chance() -> Tensor:
        return torch.rand(PLACES, generator=generator)

    on = torch.rand(PLACES, N_SOURCES, generator=generator) < BACKGROUND
    size = torch.rand(PLACES, N_SOURCES, 4, generator=generator).clamp(min=1e-6).log().sum(-1).mul(-0.5)
    x = on * size  # Gamma(4, 1/2)
    ab, c, e = (chance() < FREQUENT for _ in range(3))
    d, f = (chance() < FREQUENT) & ~c, (chance() < FREQUENT) & ~e
    if kind != "train":
        ab = torch.full((PLACES,), kind != "new_reason")
        c, d = (torch.full((PLACES,), True), ~ab) if kind == "new_reason" else (c, d)
        e, f = (ab, ab) if kind == "novel_pair" else (e, f)
    present = torch.stack([ab, ab, c, d, e, f], 1)
    low, high = torch.tensor([3.5, 3.5, 0.8, 0.8, 0.8, 0.8]), torch.tensor([5.0, 5, 1.2, 1.2, 1.2, 1.2])
    letters = low + (high - low) * torch.rand(PLACES, len(LETTERS), generator=generator)
    x[:, : len(LETTERS)] = present * letters
    return Batch({"x": x[None]})


def _truth(directions: Tensor, W: Tensor, thresholds: Tensor) -> Truth:
    sources = [*LETTERS, *(f"source{i}" for i in range(len(LETTERS), N_SOURCES))]
    targets = ["Z", *(f"target{i}" for i in range(1, N_TARGETS))]
    features = [TrueFeature(n, (ACT, READ), v) for n, v in zip(sources, directions, strict=True)]
    neurons = [TrueFeature(n, (NEURONS,), e, "neuron") for n, e in zip(targets, torch.eye(N_TARGETS))]
    edges = tuple(TrueEdge(sources[s], targets[t], float(W[t, s]), "mlp") for t, s in W.nonzero().tolist())
    facts = {"target": "Z", "usual reason": ["A", "B"], "new reason": ["C", "D"], "novel pair": ["E", "F"],
             "thresholds": dict(zip(targets, thresholds.tolist(), strict=True))}  # fmt: skip

    def values(batch: Batch) -> Tensor:
        x = batch.inputs["x"]
        return torch.cat([x, (x @ W.T - thresholds).relu()], -1)

    return Truth((*features, *neurons), edges, facts, values)


def _x(data: Drawn) -> Tensor:
    return data.batch(slice(0, len(data))).inputs["x"]


@torch.no_grad()
def _z(network: Network, x: Tensor) -> Tensor:
    module = network.module
    return module.get_submodule("mlp.act")(module.get_submodule("mlp.read")(module.get_submodule("embed")(x)))[..., 0]


def _share_of_new(network: Network, x: Tensor) -> Tensor:
    """Share of Z's input that comes over the edges of C and D."""
    parts = x[..., :4] * torch.tensor(list(WEIGHTS.values()))
    return parts[..., 2:].sum(-1) / parts.sum(-1).clamp(min=1e-9)


def _fires(network: Network, data: Drawn) -> Measured:
    on = _z(network, _x(data)) > 1e-3
    return share(int(on.sum()), on.numel())


def _meet(data: Drawn) -> Measured:
    x = _x(data)
    both = (x[..., 2] > 0) & (x[..., 3] > 0)
    return exact(float(both.double().mean()), "fraction", both.numel())


def _told(network: Network, data: dict[str, Drawn], score) -> Measured:
    """How well a score parts the places of `new_reason` where Z fires from those of `usual`, in either direction."""
    scores = []
    for split in ("usual", "new_reason"):
        x = _x(data[split])
        scores.append(score(network, x)[_z(network, x) > 1e-3])
    value = auroc(*scores)
    return exact(max(value, 1 - value), "AUROC", min(map(len, scores)))


def _twin(seed: int) -> World:
    return _build(seed, {"A": WEIGHTS["A"], "B": WEIGHTS["B"]})
