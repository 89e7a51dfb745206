"""From one input to a graph: rows in order of influence, certificate, and the graph as data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.certify import certificate, live_agreement
from understudy.attribution.chunks import NOT_KEPT, Chunk, Journal, sparse
from understudy.attribution.local import LocalPass
from understudy.attribution.rows import Engine, Target
from understudy.attribution.sources import Sources
from understudy.core.graph import Graph, Rows
from understudy.core.names import short_name
from understudy.core.records.errors import BadInput
from understudy.core.records.graph import GraphCard
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site

GRADIENT_BYTES = 1 << 27
"""Gradients at all leaves of the rows in one backward pass."""
DENSE_BYTES = 1 << 26
"""Rows that are dense at a time."""
MOST_ROWS = 512
"""Rows in a chunk: what is lost at most when work is killed."""


@dataclass(frozen=True)
class Limits:
    """How much of a graph is computed and kept. What is left out is folded into remainders."""

    nodes: int = 8192
    """Latents that get a row of their own; the most influential ones."""
    edges: int = 512
    """Edges kept in a row; the largest."""
    batch: int = 64
    """Rows in one backward pass; fewer where their gradients would need more than `GRADIENT_BYTES`."""
    silent: int = 0
    """Latents below their threshold shown at each place and dictionary, the nearest first."""
    probes: int = 8
    """Sources that the certificate's clamp test doubles."""


@dataclass(frozen=True)
class Built:
    """A graph with the pass it was made from, so that it can still be checked against interventions."""

    graph: Graph
    local: LocalPass
    sources: Sources
    targets: Sequence[Target]
    columns: Int[Tensor, " nodes"]
    """For each node its column among all sources; targets come after them."""

    def check(self, n: int = 32, seed: int = 0, progress: Progress = SILENT) -> "Built":
        """The same with `card.live` measured: n latents are removed from the live network, see `certify`."""
        live = live_agreement(self.local, self.sources, self.targets, self.graph, self.columns, n, seed, progress)
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
    journal: Journal = NOT_KEPT,
    sources: Sources | None = None,
) -> Built:
    """The graph of one input. card: who made it; its sites, targets and certificate are filled in.

    steps: 0 for exact edges of the frozen network, else integrated gradients over so many points from nothing to the
    input (Sundararajan et al. 2017), other dictionaries' writes scaled along with it. journal: keeps finished rows, so
    that work that was stopped can go on. sources: of this pass and `limits.silent`, where they were made before.

    Raises BadInput for a target that nothing adds to.
    """
    sources = sources or Sources(local, limits.silent)
    targets = list(targets(sources) if callable(targets) else targets)
    engine = make_engine(local, sources, limits, steps)
    probes = _probes(sources, limits.probes, seed)
    chunks = list(_chunks(engine, targets, probes, limits, journal, progress))
    graph, columns = _assemble(sources, targets, chunks, limits, card)
    progress.say("checking the bookkeeping")
    rows, probed = torch.cat([c.columns for c in chunks]), torch.cat([c.probed for c in chunks])
    proof = certificate(engine, targets, probes, rows, probed, seed)
    card = graph.card.model_copy(update={"certificate": proof})
    return Built(replace(graph, card=card), local, sources, targets, columns)


def _chunks(
    engine: Engine, targets: Sequence[Target], probes: Tensor, limits: Limits, journal: Journal, progress: Progress
) -> Iterator[Chunk]:
    """Rows, those of the targets first, then of latents from the last to the first, as influence reaches them."""
    sources = engine.sources
    at_once = rows_at_once(sources)
    total = len(targets) + min(limits.nodes, sum(map(len, sources.events)))

    def made(name: str, columns: Tensor, rows: Callable[[], Tensor], weight: Tensor, influence: Tensor) -> Chunk:
        found = journal.load(name)
        if found is None:
            dense = rows()
            after = influence + _spread(weight, dense)
            found = sparse(columns, dense, limits.edges, probes, after, engine.largest_so_far)
            journal.store(name, found)
        engine.seen_before(found.largest)
        return found

    with progress.task("edges", total, "rows") as task:
        columns, weight = torch.arange(len(targets)) + sources.n, torch.tensor([t.card.weight for t in targets])
        chunk = made("targets", columns, partial(_target_rows, engine, targets), weight, torch.zeros(sources.n))
        yield chunk
        influence, left, done = chunk.influence, limits.nodes, len(chunk)
        task.update(done)
        for number in range(len(sources.events) - 1, -1, -1):
            event = sources.events[number]
            chosen = _choose(influence, sources, number, left)
            left -= len(chosen)
            for i, part in enumerate(chosen.split(at_once)):
                rows = event.first + part
                edges = partial(engine.event, event, part)
                chunk = made(f"{number}-{i}", rows, edges, influence[rows], influence)
                yield chunk
                influence, done = chunk.influence, done + len(chunk)
                task.update(done)


def _target_rows(engine: Engine, targets: Sequence[Target]) -> Tensor:
    dense = engine.targets(targets)
    if not bool(dense.any()):
        raise BadInput(f"nothing on this input adds to {targets[0].card.name}: its value is 0. Choose another.")
    return dense


def rows_at_once(sources: Sources) -> int:
    """Rows in a chunk: they are dense until it is finished."""
    return max(1, min(MOST_ROWS, DENSE_BYTES // (4 * sources.n)))


def make_engine(local: LocalPass, sources: Sources, limits: Limits, steps: int = 0) -> Engine:
    """The pass whose gradients are edges, and the pass from nothing whose values are constants."""
    zero = {s: torch.zeros_like(v).requires_grad_() for s, v in local.leaves.items()}
    batch = batch_of(local, limits)
    if steps == 0:
        return Engine(local, sources, [(local.clean, local.leaves)], local.run(zero), True, batch)
    passes = []
    for i in range(steps):
        share = (i + 0.5) / steps
        leaves = {s: (v.detach() * share).requires_grad_() for s, v in local.leaves.items()}
        passes.append((local.run(leaves, frozen=False), leaves))
    return Engine(local, sources, passes, local.run(zero, frozen=False), False, batch)


def batch_of(local: LocalPass, limits: Limits) -> int:
    """Rows in one backward pass: as many as were asked for, as far as their gradients at all leaves fit."""
    bytes_of_a_row = sum(4 * v.numel() for v in local.leaves.values())
    return max(1, min(limits.batch, GRADIENT_BYTES // max(1, bytes_of_a_row)))


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
    sources: Sources, targets: Sequence[Target], chunks: Sequence[Chunk], limits: Limits, card: GraphCard
) -> tuple[Graph, Int[Tensor, " nodes"]]:
    """All columns and targets as nodes, then without the latents that got no row; and the column of each node."""
    total = sources.n + len(targets)
    values = torch.stack([t.value(sources.local.clean).detach().float() for t in targets])
    nodes = sources.nodes(values, [t.place for t in targets])
    chunks = sorted((c for c in chunks if len(c)), key=lambda c: int(c.columns[0]))
    known = torch.cat([c.columns for c in chunks])
    counts = torch.zeros(total, dtype=torch.long).index_copy(0, known, torch.cat([c.counts for c in chunks]))
    nothing = torch.zeros(total, dtype=torch.float64)
    remainders = {
        name: nothing.index_copy(0, known, torch.cat([getattr(c, name) for c in chunks])).float()
        for name in ("remainder", "remainder_abs")
    }
    names = [short_name(sources.local.network, Site.parse(site)) for site in sources.sites]
    update = {"targets": [t.card for t in targets], "sites": sources.sites, "site_names": names}
    card = card.model_copy(update=update)
    graph = Graph(
        nodes,
        Rows(
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            sources=torch.cat([c.sources for c in chunks]),
            weights=torch.cat([c.weights for c in chunks]),
            **remainders,
        ),
        card,
    )
    left_out = nodes.where("latent")
    left_out[known] = False
    columns = (~left_out).nonzero().squeeze(-1)
    if not bool(left_out.any()):
        return graph, columns
    why = f"{int(left_out.sum())} latents beyond the limit of {limits.nodes} folded into remainders"
    graph = graph.keep(~left_out, why=why)
    return replace(graph, card=card.model_copy(update={"note": why})), columns
