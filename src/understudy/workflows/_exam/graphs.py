"""Does a graph run better than a random one of its size? On every organism, at three sizes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.baselines import NeuronBasis
from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement
from understudy.core.world import World
from understudy.dictionaries import SAE
from understudy.edits import restricted
from understudy.metrics import Bootstrap
from understudy.sparsity import Threshold
from understudy.workflows._opening import open_world
from understudy.workflows._running.ranking import Ranking, at_random, by_score
from understudy.workflows.train import TrainConfig, train

SIZES = (7 / 8, 3 / 4, 1 / 2)
"""Shares of the latents that fire, rounded down."""
DRAWS = 8
"""Random graphs of each size; their mean is compared with the graph."""
RANKED_ON, JUDGED_ON, BATCH = 64, 256, 64


class Source(NamedTuple):
    """Where the nodes of an organism's graph come from."""

    nodes: Literal["true features", "neurons", "sae"]
    site: str = ""
    k: int = 0
    n_latents: int = 0
    """Of an SAE; 0: half as many as there are true features."""


_PROGRAM, _NEURONS = Source("true features"), Source("neurons")
GRAPHS = {
    "sort": _PROGRAM, "histogram": _PROGRAM, "fraction_previous": _PROGRAM, "parentheses": _PROGRAM,
    "induction": _PROGRAM, "universal_and": _NEURONS, "superposition_5_2": Source("sae", "hidden", 1),
    "superposition_40_10": Source("sae", "hidden", 2), "superposition_5_2_identity": Source("sae", "hidden", 1),
    "synthetic": _NEURONS, "two_codes": _NEURONS, "two_codes_saturating": _NEURONS, "new_reasons": _NEURONS,
    "false_fact": _NEURONS, "false_fact_spread": _NEURONS, "password_locked": _NEURONS,
    "misbehaviour": Source("sae", "mlp_out.1", 8, 128), "misbehaviour_gru": _NEURONS, "backdoor": _NEURONS,
    "modular_addition": _NEURONS, "mess3": _NEURONS, "residual_mlps": _NEURONS, "sparse_parity": _NEURONS,
    "two_hop": _NEURONS, "lookup_or_copy_16": Source("sae", "attn_out", 1, 32),
    "lookup_or_copy_512": Source("sae", "attn_out", 1, 32),
}  # fmt: skip
PLACES = 200_000
"""To train an SAE on."""
ALIKE = {
    "two_codes": "its 96 neurons are alike by construction: none matters more than another",
}
"""Organisms in which no choice of few nodes can be much better than chance."""

TOGETHER = 10
"""Latents that cost so many times more together than the sum of what each costs alone stand in for one another."""


class GraphRow(Record):
    """A graph of one size in one organism's place, beside random graphs of that size."""

    organism: str
    nodes: str
    """What its nodes are: true features, neurons, or the latents of an SAE trained for it."""
    size: int
    """Latents kept."""
    of: int
    """Latents that fire."""
    graph: Metric
    """Divergence from the network itself, a place."""
    random: Metric
    """The same of random graphs, the mean of eight."""
    than_random: Metric
    """random - graph, paired over sequences: above 0 the graph is better."""
    nothing: Metric
    """Divergence with no latents at all: where graph and random are both there, the size says nothing."""
    note: str
    """Why the graph is not better, where it is not and the reason is known."""
    right: Metric
    """Share of answers that are right with the graph in place, where the organism has answers."""

    @property
    def verdict(self) -> str:
        d = self.than_random
        if isinstance(d, NotMeasured):
            return "not measured"
        return "better" if d.low > 0 else "worse" if d.high < 0 else "undecided"


def graph_rows(name: str, seed: int, progress: Progress) -> list[GraphRow]:
    """The rows of one organism. Latents are ranked on training data by what dropping each alone does to the output, all
    others in place: where attention is hard and every answer right, gradients are 0."""
    world, source = open_world(name, seed, progress), GRAPHS[name]
    network = world.network
    groups = _groups(world, source, seed, progress)
    found = ablation(network, groups, world.data["train"].batch(slice(0, RANKED_ON)), progress)
    fires = int(sum((rate > 0).sum() for rate in found.rate.values()))
    graph = by_score(groups, found.effect)
    chance = [at_random(groups, found.rate, 1000 * seed + i) for i in range(DRAWS)]
    batch = world.data["held_out"].batch(slice(0, min(JUDGED_ON, len(world.data["held_out"]))))
    bootstrap = Bootstrap(batch.n_sequences, seed)
    nothing = _judged(network, groups, graph, 0, batch).divergence
    rows = []
    for share in SIZES:
        size = max(1, int(share * fires))
        mine = _judged(network, groups, graph, size, batch)
        rival = np.mean([_judged(network, groups, r, size, batch).divergence for r in chance], 0)
        unit, places = network.divergence_unit, mine.places
        than = bootstrap.difference(rival, mine.divergence, places, unit)
        rows.append(
            GraphRow(
                organism=name,
                nodes=source.nodes,
                size=size,
                of=fires,
                graph=bootstrap.ratio(mine.divergence, places, unit),
                random=bootstrap.ratio(rival, places, unit),
                than_random=than,
                right=_right(mine, bootstrap),
                nothing=bootstrap.ratio(nothing, places, unit),
                note=_why_not(name, than, mine.divergence, nothing, _alone(found, size), places),
            )
        )
    return rows


def _why_not(name: str, than: Metric, graph: np.ndarray, nothing: np.ndarray, alone: float, places: np.ndarray) -> str:
    """The reason why a graph is no better than random ones, "" where it is better or no reason is known."""
    if isinstance(than, Measured) and than.low > 0:
        return ""
    if graph.sum() >= 0.99 * nothing.sum():
        return "as bad as no latents at all: so few are kept that nothing is computed"
    together = graph.sum() / places.sum()
    if together > TOGETHER * alone:
        cost = f"one at a time the latents left out cost {alone:.2g} in all, together {together:.2g}"
        return f"{cost}: they stand in for one another, which leaving out one at a time does not show"
    return ALIKE.get(name, "")


def _alone(found: "Ablation", size: int) -> float:
    """What the latents that a graph of `size` leaves out cost when each is left out alone, summed."""
    effects = torch.cat([effect[found.rate[member] > 0] for member, effect in found.effect.items()])
    return float(effects.sort(descending=True).values[size:].sum())


class Ablation(NamedTuple):
    """By dictionary, [n_latents], fp64."""

    effect: dict[Dictionary, Tensor]
    """Mean divergence from the network itself when this one is dropped everywhere; 0 where it never fires."""
    rate: dict[Dictionary, Tensor]
    """Share of places where it is on."""


@torch.no_grad()
def ablation(network: Network, groups: Sequence[Group], batch: Batch, progress: Progress) -> Ablation:
    """One forward pass for each latent that fires on `batch`, without it."""
    replacement = Replacement(network, groups)
    own, whole = network.forward(batch), replacement.run(batch)
    members = [m for g in groups for m in g.members]
    rate = {m: _rate(whole.latents[m]) for m in members}
    effect = {m: torch.zeros(m.n_latents, dtype=torch.float64) for m in members}
    with progress.task("dropping latents one at a time", sum(int((r > 0).sum()) for r in rate.values()), "") as task:
        done = 0
        for member in members:
            for i in rate[member].nonzero().squeeze(-1).tolist():
                rest = torch.arange(member.n_latents) != i
                output = replacement.run(batch, edits={member: lambda z, rest=rest: z.keep(rest)}).output
                effect[member][i] = network.divergence(own, output, batch).double().mean()
                done += 1
                task.update(done)
    return Ablation(effect, rate)


def _rate(calls: Sequence[Latents]) -> Tensor:
    fires = sum(z.with_values((z.values != 0).float()).dense().flatten(0, -2).double().mean(0) for z in calls)
    return torch.as_tensor(fires) / len(calls)


def _groups(world: World, source: Source, seed: int, progress: Progress) -> list[Group]:
    if source.nodes == "true features":
        return true_dictionaries(world)
    if source.nodes == "neurons":
        found = [(p, world.network.neurons(p)) for p in world.network.parts()]
        return [Group([NeuronBasis(own.site, p.write, own.W, own.bias)]) for p, own in found if own is not None]
    with tempfile.TemporaryDirectory() as folder:
        n_latents = source.n_latents or len(world.truth.features) // 2
        config = TrainConfig(
            kind="sae", sites=source.site, n_latents=n_latents, k=source.k, tokens=PLACES, batch=1024, seed=seed,
            out=Path(folder) / "run", checkpoint_s=3600,
        )  # fmt: skip
        return train(config, progress, world.network).groups


def true_dictionaries(world: World) -> list[Group]:
    """At each site where features are first written, a dictionary whose latents are these features."""
    groups = []
    inner = [f for f in world.truth.features if f.role != "output"]
    for site in dict.fromkeys(f.site for f in inner):
        W_dec = torch.stack([f.direction for f in inner if f.site == site]).float()
        width = {site: W_dec.shape[1]}
        arrays = {"W_enc": torch.linalg.pinv(W_dec).T.contiguous(), "b_enc": torch.zeros(len(W_dec)), "W_dec": W_dec}
        arrays["b_dec"] = torch.zeros(W_dec.shape[1])
        rule = Threshold(torch.full((len(W_dec),), 1e-3))
        groups.append(Group([SAE(width, width, rule, arrays).requires_grad_(False)]))
    return groups


class _Sums(NamedTuple):
    """Sums over places of each sequence, [n_sequences]."""

    divergence: np.ndarray
    places: np.ndarray
    right: np.ndarray | None
    asked: np.ndarray | None


@torch.no_grad()
def _judged(network: Network, groups: Sequence[Group], ranking: Ranking, size: int, batch: Batch) -> _Sums:
    replacement = Replacement(network, restricted(groups, ranking.first(size)))
    divergence, right, asked = [], [], []
    for i in range(0, batch.n_sequences, BATCH):
        part = batch[slice(i, i + BATCH)]
        output = replacement.run(part).output
        divergence.append(network.divergence(network.forward(part), output, part).double())
        choice = network.choice(output)
        if part.targets is not None and isinstance(choice, Tensor):
            asked.append(part.targets != -100)
            right.append((choice == part.targets) & asked[-1])
    found = torch.cat(divergence)
    places = np.full(len(found), float(found[0].numel()))
    counts = [torch.cat(x).double().sum(1).numpy() if x else None for x in (right, asked)]
    return _Sums(found.flatten(1).sum(1).numpy(), places, *counts)


def _right(found: _Sums, bootstrap: Bootstrap) -> Metric:
    if found.right is None or found.asked is None:
        return NotMeasured(not_measured="its outputs are numbers, not answers")
    return bootstrap.ratio(found.right, found.asked, "fraction")
