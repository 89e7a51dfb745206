"""From one input to a graph: rows in order of influence, certificate, and the graph as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.certify import certificate, live_agreement
from understudy.attribution.local import LocalPass
from understudy.attribution.rows import Engine, Target
from understudy.attribution.sources import Sources
from understudy.core.graph import Graph, Rows
from understudy.core.names import short_name
from understudy.core.records.errors import BadInput
from understudy.core.records.graph import GraphCard
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site


@dataclass(frozen=True)
class Limits:
    """How much of a graph is computed and kept. What is left out is folded into remainders."""

    nodes: int = 8192
    """Latents that get a row of their own; the most influential ones."""
    edges: int = 512
    """Edges kept in a row; the largest."""
    batch: int = 128
    """Rows in one backward pass."""
    silent: int = 0
    """Latents below their threshold shown at each place and dictionary, the nearest first."""
    probes: int = 8
    """Sources that the certificate's clamp test doubles."""


@dataclass
class _Found:
    """Rows as they come, each sparse, by column."""

    limits: Limits
    n: int
    kept: dict[int, tuple[Tensor, Tensor, float, float]]

    def add(self, columns: Sequence[int], dense: Float[Tensor, "m n"]) -> None:
        k = min(self.limits.edges, self.n)
        ids = dense.abs().topk(k, dim=1).indices if k < self.n else torch.arange(self.n).expand(dense.shape)
        kept = dense.gather(1, ids)
        remainder = dense.double().sum(1) - kept.double().sum(1)
        remainder_abs = (dense.double().abs().sum(1) - kept.double().abs().sum(1)).clamp(min=0)
        for i, column in enumerate(columns):
            real = kept[i] != 0
            self.kept[column] = (ids[i][real], kept[i][real], float(remainder[i]), float(remainder_abs[i]))


@dataclass(frozen=True)
class Built:
    """A graph with the pass it was made from, so that it can still be checked against interventions."""

    graph: Graph
    local: LocalPass
    sources: Sources
    targets: Sequence[Target]
    columns: Int[Tensor, " nodes"]
    """For each node its column among all sources; targets come after them."""

    def check(self, n: int = 32, seed: int = 0) -> "Built":
        """The same with `card.live` measured: n latents are removed from the live network, see `certify`."""
        live = live_agreement(self.local, self.sources, self.targets, self.graph, self.columns, n, seed)
        card = self.graph.card.model_copy(update={"live": live})
        return replace(self, graph=replace(self.graph, card=card))


def build(
    local: LocalPass,
    targets: Sequence[Target] | Callable[[Sources], Sequence[Target]],
    card: GraphCard,
    limits: Limits = Limits(),
    steps: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Built:
    """The graph of one input. card: who made it; its sites, targets and certificate are filled in.

    steps: 0 for exact edges of the frozen network, else integrated gradients over so many points from nothing to the
    input (Sundararajan et al. 2017), other dictionaries' writes scaled along with it.

    Raises BadInput for a target that nothing adds to.
    """
    sources = Sources(local, limits.silent)
    targets = list(targets(sources) if callable(targets) else targets)
    engine = make_engine(local, sources, limits, steps)
    probes = _probes(sources, limits.probes, seed)
    found = _Found(limits, sources.n, {})
    doubled: dict[int, Tensor] = {}
    with progress.task("edges", sum(map(len, sources.events)) + len(targets), "rows") as task:
        dense = engine.targets(targets)
        if not bool(dense.any()):
            raise BadInput(f"nothing on this input adds to {targets[0].card.name}: its value is 0. Choose another.")
        columns = range(sources.n, sources.n + len(targets))
        found.add(columns, dense)
        doubled |= dict(zip(columns, dense[:, probes], strict=True))
        influence = _spread(torch.tensor([t.card.weight for t in targets]), dense)
        left = limits.nodes
        for number in range(len(sources.events) - 1, -1, -1):
            event = sources.events[number]
            chosen = _choose(influence, sources, number, left)
            dense = engine.event(event, chosen)
            rows = (event.first + chosen).tolist()
            found.add(rows, dense)
            doubled |= dict(zip(rows, dense[:, probes], strict=True))
            influence += _spread(influence[event.first + chosen], dense)
            left -= len(chosen)
            task.update(len(found.kept))
    graph, columns = _assemble(sources, targets, found, card)
    proof = certificate(engine, targets, probes, doubled, seed)
    card = graph.card.model_copy(update={"certificate": proof})
    return Built(replace(graph, card=card), local, sources, targets, columns)


def make_engine(local: LocalPass, sources: Sources, limits: Limits, steps: int = 0) -> Engine:
    """The pass whose gradients are edges, and the pass from nothing whose values are constants."""
    zero = {s: torch.zeros_like(v).requires_grad_() for s, v in local.leaves.items()}
    if steps == 0:
        return Engine(local, sources, [(local.clean, local.leaves)], local.run(zero), True, limits.batch)
    passes = []
    for i in range(steps):
        share = (i + 0.5) / steps
        leaves = {s: (v.detach() * share).requires_grad_() for s, v in local.leaves.items()}
        passes.append((local.run(leaves, frozen=False), leaves))
    return Engine(local, sources, passes, local.run(zero, frozen=False), False, limits.batch)


def _probes(sources: Sources, n: int, seed: int) -> Int[Tensor, " p"]:
    """Sources that the clamp test doubles: drawn from all but the network's own constants."""
    columns = torch.arange(sources.n)
    columns = columns[columns != sources.constants]
    silent = [e.columns.start + (e.z.values == 0).nonzero().squeeze(-1) for e in sources.events]
    columns = columns[~torch.isin(columns, torch.cat(silent))] if silent else columns
    order = torch.randperm(len(columns), generator=torch.Generator().manual_seed(seed))
    return columns[order[:n]]


def _spread(weight: Tensor, dense: Tensor) -> Float[Tensor, " n"]:
    """Influence handed on by rows of this weight: in proportion to the absolute values of their edges."""
    mass = dense.abs().sum(1, keepdim=True).clamp(min=1e-30)
    return weight.float() @ (dense.abs() / mass)


def _choose(influence: Tensor, sources: Sources, number: int, left: int) -> Int[Tensor, " m"]:
    """Which latents of an event get rows: all where the budget allows, else the most influential of them, their number
    in proportion to the influence that is at this event and at those before it."""
    event = sources.events[number]
    waiting = sources.events[: number + 1]
    if sum(map(len, waiting)) <= left:
        return torch.arange(len(event))
    here, all_of_them = (float(sum(influence[e.columns].sum() for e in found)) for found in ([event], waiting))
    n = min(len(event), round(left * here / max(all_of_them, 1e-30)))
    return influence[event.columns].topk(n).indices.sort().values


def _assemble(
    sources: Sources, targets: Sequence[Target], found: _Found, card: GraphCard
) -> tuple[Graph, Int[Tensor, " nodes"]]:
    """All columns and targets as nodes, then without the latents that got no row; and the column of each node."""
    total = sources.n + len(targets)
    nodes = sources.nodes(torch.stack([t.value(sources.local.clean).detach().float() for t in targets]))
    empty = (torch.zeros(0, dtype=torch.long), torch.zeros(0), 0.0, 0.0)
    rows = [found.kept.get(i, empty) for i in range(total)]
    counts = torch.tensor([len(r[0]) for r in rows])
    names = [short_name(sources.local.network, Site.parse(site)) for site in sources.sites]
    update = {"targets": [t.card for t in targets], "sites": sources.sites, "site_names": names}
    card = card.model_copy(update=update)
    graph = Graph(
        nodes,
        Rows(
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            sources=torch.cat([r[0] for r in rows]).to(torch.int32),
            weights=torch.cat([r[1] for r in rows]).float(),
            remainder=torch.tensor([r[2] for r in rows]),
            remainder_abs=torch.tensor([r[3] for r in rows]),
        ),
        card,
    )
    known = torch.zeros(total, dtype=torch.bool)
    known[list(found.kept)] = True
    left_out = nodes.where("latent") & ~known
    columns = (~left_out).nonzero().squeeze(-1)
    if not bool(left_out.any()):
        return graph, columns
    why = f"{int(left_out.sum())} latents beyond the limit of {found.limits.nodes} folded into remainders"
    graph = graph.keep(~left_out, why=why)
    return replace(graph, card=card.model_copy(update={"note": why})), columns
