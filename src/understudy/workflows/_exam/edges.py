"""Are the planted edges found? Graphs of compiled programs beside ways to guess edges that know less."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.attribution import Limits, LocalPass, Target, build
from understudy.core.dictionary import Group
from understudy.core.graph import Graph
from understudy.core.records.errors import BadInput
from understudy.core.records.graph import KINDS, TargetCard
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.progress import Progress
from understudy.core.world import TrueFeature, World
from understudy.workflows._exam.graphs import true_dictionaries
from understudy.workflows._opening import open_world
from understudy.workflows.attribute import Question, card_of

PROGRAMS = ("sort", "histogram", "fraction_previous", "parentheses", "induction")
INPUTS = 12
"""Held-out sequences, a graph of each."""
SILENT = 32
"""More than any site of a program holds."""
RESAMPLES, PERMUTED = 200, 1000


class EdgeRow(Record):
    """One way to find edges, on one program."""

    organism: str
    """`-twin`: the graph is made on the negative twin, and scored against the program's edges."""
    method: str
    """graph: the largest |edge| between two true features over inputs and places, features that are held down included.
    graph, what is on: without these. weights: |what the source writes,
    read by the target|, whatever attention does. co-activation: |correlation| of the true values, knowing no weights.
    permuted: the graph's scores dealt out anew among all pairs, many times; permuted within targets: among the pairs of
    each target, so that how strongly a target is driven is kept and by what is not."""
    true: int
    """Planted edges among the features that are ever on."""
    pairs: int
    """Pairs of such features, the source written before the target."""
    auroc: Metric
    """Chance that a planted edge scores above a pair without one; 0.5 is chance. Interval: 95%, bootstrap over targets,
    which has no width where every resample agrees. Permuted: the mean over permutations, and where 95% of them lie."""
    precision: Metric
    """Share of planted edges among as many of the highest scores as there are planted edges, ties counted in part."""
    scored: int | None = None
    """Pairs whose score is not 0; where they are few, an AUROC of 0.5 is that of ties."""
    note: str = ""
    """Inputs that have no graph, and why."""


class Pairs(NamedTuple):
    """All pairs of features of which the first could compute the second."""

    names: list[tuple[str, str]]
    planted: Bool[Tensor, " n"]


class Edges(NamedTuple):
    """What the graphs of some inputs hold."""

    weights: dict[tuple[str, str], float]
    """The largest |edge| from one true feature to another."""
    seen: set[str]
    """Features that were on; outputs always are."""
    failed: list[str]
    """Why there is no graph, for each input without one."""


def edge_rows(name: str, seed: int, progress: Progress) -> list[EdgeRow]:
    """The rows of one program. Queries and keys decide where attention looks; the graph freezes patterns, and they are
    no edges here."""
    world = open_world(name, seed, progress)
    assert world.negative is not None
    found, on = graph_edges(world, world, progress, SILENT), graph_edges(world, world, progress)
    pairs = pairs_of(world, found.seen)
    twin = graph_edges(world, world.negative, progress, SILENT)
    graph = _scores(found, pairs)
    others = {
        "graph, what is on": _scores(on, pairs),
        "weights": _weights(world, pairs),
        "co-activation": _correlation(world, pairs),
    }
    return [
        edge_row(name, "graph", graph, pairs, seed),
        permuted_row(name, graph, pairs, seed, within_targets=False),
        permuted_row(name, graph, pairs, seed, within_targets=True),
        *(edge_row(name, method, score.double(), pairs, seed) for method, score in others.items()),
        twin_row(f"{name}-twin", twin, pairs, seed),
    ]


def _scores(found: Edges, pairs: Pairs) -> Float[Tensor, " n"]:
    return torch.tensor([found.weights.get(p, 0.0) for p in pairs.names], dtype=torch.float64)


def pairs_of(world: World, seen: set[str]) -> Pairs:
    """Among the features that were on, the first written before the second."""
    features = [f for f in world.truth.features if f.name in seen]
    written = _order(world)
    names = [(a.name, b.name) for a in features for b in features
             if written[a.site.module] < written[b.site.module]]  # fmt: skip
    true = {(e.source, e.target) for e in world.truth.contract(world.truth.names)}
    return Pairs(names, torch.tensor([p in true for p in names]))


def _order(world: World) -> dict[str, tuple[int, int]]:
    """When each module of a compiled program is done: modules stand in the order of the forward pass, and one that has
    others inside is done after them."""
    names = [name for name, _ in world.network.module.named_modules()]
    last = {n: max(i for i, other in enumerate(names) if f"{other}.".startswith(f"{n}.")) for n in names if n}
    return {n: (at, -n.count(".")) for n, at in last.items()}


def graph_edges(world: World, studied: World, progress: Progress, silent: int = 0) -> Edges:
    """Edges between `world`'s true features in graphs of `studied`. silent: features below their threshold shown at
    each place of each site: their rows hold the edges that keep them off, which no graph of what is on can have.

    A twin may have inputs of which no graph can be made, as where nothing reaches an output; the world itself raises.
    """
    groups = true_dictionaries(world)
    outputs = [f.name for f in world.truth.features if f.role == "output"]
    names = [[f.name for f in _inner(world) if f.site == group.writes[0]] for group in groups]
    edges: dict[tuple[str, str], float] = {}
    seen, failed = set(outputs), []
    with progress.task(f"graphs of {studied.name}", INPUTS, "graphs") as task:
        for i in range(INPUTS):
            task.update(i)
            try:
                graph = _graph(studied, groups, len(outputs), i, silent)
            except BadInput as error:
                if studied is world:
                    raise
                failed.append(str(error))
                continue
            called = list(_called(graph, names, outputs))
            seen |= {n for n, value, t in zip(called, graph.nodes.value, graph.nodes.threshold, strict=True)
                     if n and value > t}  # fmt: skip
            rows = graph.rows
            ends = zip(rows.sources.tolist(), rows.targets.tolist(), rows.weights.tolist(), strict=True)
            for s, t, w in ends:
                if called[s] and called[t]:
                    pair = (called[s], called[t])
                    edges[pair] = max(edges.get(pair, 0.0), abs(w))
    return Edges(edges, seen, failed)


def _inner(world: World) -> list[TrueFeature]:
    return [f for f in world.truth.features if f.role != "output"]


def _graph(world: World, groups: list[Group], n_outputs: int, i: int, silent: int) -> Graph:
    network, batch = world.network, world.data["held_out"].batch([i])
    local = LocalPass(network, groups, batch)
    places = range(next(iter(batch.inputs.values())).shape[1])

    def target(place: int, k: int) -> Target:
        """An output's own score: less the mean of all it would have an edge from every feature."""
        card = TargetCard(name=f"{place} {k}", weight=1.0)
        return Target(card, lambda seen: network.scores(seen.output)[0, place, k])

    targets = [target(p, k) for p in places for k in range(n_outputs)]
    card = card_of(Question(network, groups, None, network.name), batch)
    return build(local, targets, card, Limits(silent=silent)).graph


def _called(graph: Graph, names: list[list[str]], outputs: list[str]) -> Iterator[str]:
    """The true feature that each node is, "" for inputs, biases and errors."""
    nodes = graph.nodes
    columns = zip(nodes.kind.tolist(), nodes.dictionary.tolist(), nodes.latent.tolist(), strict=True)
    for kind, dictionary, latent in columns:
        if KINDS[kind] == "latent":
            yield names[dictionary][latent]
        else:
            yield outputs[latent % len(outputs)] if KINDS[kind] == "target" else ""


def _weights(world: World, pairs: Pairs) -> Float[Tensor, " n"]:
    """|contracted weight| along paths through modules whatever attention looks at: direction times what is read.

    Where the target is a neuron or an output its row of the reading Linear; else, what writes it is not known.
    """
    module = world.network.module
    features = {f.name: f for f in world.truth.features}
    reads = {}
    for name, feature in features.items():
        path, row = feature.site.module, int(feature.direction.argmax())
        if feature.role == "neuron":
            reads[name] = module.get_parameter(f"{path.removesuffix('.act')}.read.weight")[row]
        elif feature.role == "output":
            reads[name] = module.get_parameter(f"{path}.weight")[row]
    out = []
    for a, b in pairs.names:
        source, direction = features[a], features[a].direction
        if source.role == "neuron":
            path = source.site.module.removesuffix(".act")
            direction = module.get_parameter(f"{path}.write.weight") @ direction
        target = features[b]
        read = reads.get(b, target.direction if source.role == "neuron" else None)
        out.append(0.0 if read is None else abs(float(direction @ read)))
    return torch.tensor(out)


@torch.no_grad()
def _correlation(world: World, pairs: Pairs) -> Float[Tensor, " n"]:
    values = world.truth.values
    assert values is not None
    found = values(world.data["held_out"].batch(slice(0, 64))).flatten(0, -2).double()
    columns = {n: i for i, n in enumerate(world.truth.names)}
    centred = found - found.mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-12)
    matrix = (unit.T @ unit).abs()
    return torch.stack([matrix[columns[a], columns[b]] for a, b in pairs.names])


def edge_row(organism: str, method: str, scores: Float[Tensor, " n"], pairs: Pairs, seed: int) -> EdgeRow:
    """A row from a score of every pair."""
    score, planted = scores.numpy(), pairs.planted.numpy()
    targets = np.array([t for _, t in pairs.names])
    made = {t: np.flatnonzero(targets == t) for t in dict.fromkeys(targets)}
    rng, groups = np.random.default_rng(seed), list(made.values())
    draws = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLES)]
    return EdgeRow(
        organism=organism, method=method, true=int(planted.sum()), pairs=len(planted),
        auroc=_interval(_auroc, score, planted, draws, "AUROC", len(groups)),
        precision=_interval(_precision, score, planted, draws, "fraction", len(groups)),
        scored=int((score != 0).sum()),
    )  # fmt: skip


def permuted_row(organism: str, scores: Float[Tensor, " n"], pairs: Pairs, seed: int, within_targets: bool) -> EdgeRow:
    """What the same scores reach where they say nothing of the pairs: dealt out anew `PERMUTED` times."""
    score, planted = scores.numpy(), pairs.planted.numpy()
    targets = np.unique([t for _, t in pairs.names], return_inverse=True)[1]
    group = targets if within_targets else np.zeros_like(targets)
    rng, home = np.random.default_rng(seed), np.argsort(group, kind="stable")
    dealt, found = np.empty_like(score), []
    for _ in range(PERMUTED):
        dealt[home] = score[np.lexsort((rng.random(len(score)), group))]
        found.append((_auroc(dealt, planted), _precision(dealt, planted)))
    (low, high), means = np.quantile(found, (0.025, 0.975), axis=0), np.mean(found, 0)
    auroc, precision = (
        Measured(value=v, low=min(v, a), high=max(v, b), unit=unit, n=PERMUTED)
        for v, a, b, unit in zip(means, low, high, ("AUROC", "fraction"), strict=True)
    )
    return EdgeRow(
        organism=organism, method="permuted within targets" if within_targets else "permuted",
        true=int(planted.sum()), pairs=len(planted), auroc=auroc, precision=precision, scored=int((score != 0).sum()),
    )  # fmt: skip


def twin_row(organism: str, found: Edges, pairs: Pairs, seed: int) -> EdgeRow:
    """The graph of the twin; its figures are not measured where no input has a graph."""
    row = edge_row(organism, "graph", _scores(found, pairs), pairs, seed)
    if not found.failed:
        return row
    note = f"{len(found.failed)} of {INPUTS} inputs have no graph: {found.failed[0]}"
    none = NotMeasured(not_measured=note)
    update = {"auroc": none, "precision": none, "scored": None} if len(found.failed) == INPUTS else {}
    return row.model_copy(update={"note": note} | update)


def _interval(figure, score: np.ndarray, planted: np.ndarray, draws: list[np.ndarray], unit: str, n: int) -> Measured:
    """n: the targets, which are what is drawn again."""
    value = figure(score, planted)
    spread = [figure(score[d], planted[d]) for d in draws if 0 < planted[d].sum() < len(d)]
    low, high = np.quantile(spread, (0.025, 0.975))
    return Measured(value=value, low=min(value, low), high=max(value, high), unit=unit, n=n)


def _auroc(score: np.ndarray, planted: np.ndarray) -> float:
    order, counts = np.unique(score, return_inverse=True, return_counts=True)[1:]
    rank = (np.cumsum(counts) - (counts - 1) / 2)[order]
    n, m = (~planted).sum(), planted.sum()
    return float((rank[planted].sum() - m * (m + 1) / 2) / (n * m))


def _precision(score: np.ndarray, planted: np.ndarray) -> float:
    """At as many of the highest scores as are planted; those that tie with the last share what room is left."""
    m = int(planted.sum())
    last = np.sort(score)[-m]
    above, level = score > last, score == last
    return float((planted[above].sum() + planted[level].mean() * (m - above.sum())) / m)
