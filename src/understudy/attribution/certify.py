"""The certificate of a graph's bookkeeping, and beside it the truth: agreement with live interventions."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.local import LocalPass, Seen, Slot
from understudy.attribution.rows import Engine, Target
from understudy.attribution.sources import Sources
from understudy.core.graph import Graph
from understudy.core.records.graph import Certificate, Frozen, Live
from understudy.core.records.metric import Measured, Metric, NotMeasured
from understudy.core.records.progress import SILENT, Progress

TOLERANCE = 1e-4
"""Relative error above which a graph of fp32 is not called exact."""
RESAMPLES = 1000
ABLATED = 12
"""Sources ablated to say how much of the targets' variation each kind of freezing loses."""


def certificate(
    engine: Engine,
    targets: Sequence[Target],
    probes: Int[Tensor, " p"],
    columns: Int[Tensor, " m"],
    edges: Float[Tensor, "m p"],
    seed: int,
) -> Certificate:
    """columns: whose rows there are (targets after all sources); edges: theirs from `probes`."""
    local, sources = engine.local, engine.sources
    row_sum = engine.largest["row_sum"] / max(engine.largest["value"], 1e-30)
    if not engine.frozen:
        return Certificate(
            exact=False, row_sum_error=row_sum, clamp_error=None, second_derivative=None, tolerance=TOLERANCE, frozen=[]
        )
    clamp = clamp_error(local, sources, targets, probes, columns, edges)
    curve = second_derivative(local, sources, targets, seed)
    return Certificate(
        exact=max(row_sum, clamp, curve) <= TOLERANCE,
        row_sum_error=row_sum,
        clamp_error=clamp,
        second_derivative=curve,
        tolerance=TOLERANCE,
        frozen=frozen_shares(local, sources, targets, seed),
    )


def _all_values(sources: Sources, targets: Sequence[Target], seen: Seen) -> Float[Tensor, " n"]:
    """Pre-activation of every latent by column (0 elsewhere), then the targets."""
    out = torch.zeros(sources.n + len(targets))
    for event in sources.events:
        out[event.columns] = sources.values(event, seen).detach().float()
    out[sources.n :] = torch.stack([t.value(seen).detach().float() for t in targets])
    return out


def changed(leaves: Mapping[Slot, Tensor], part: Mapping[Slot, Tensor], times: float) -> dict[Slot, Tensor]:
    """Leaves with a part added `times` over."""
    return {s: (v.detach() + times * part[s] if s in part else v.detach()).requires_grad_() for s, v in leaves.items()}


def clamp_error(
    local: LocalPass, sources: Sources, targets: Sequence[Target], probes: Tensor, columns: Tensor, predicted: Tensor
) -> float:
    """Add to each probe in a frozen forward pass: every value must change by that multiple of its edge. The largest
    error, relative to the probe's largest change; forward passes against backward ones.

    The multiple makes that change as large as the values are, or rounding would be all that is seen.
    """
    clean = _all_values(sources, targets, local.clean)
    size, worst = float(clean.abs().max()), 0.0
    for i, probe in enumerate(probes.tolist()):
        largest = float(predicted[:, i].abs().max())
        times = max(1.0, size / max(largest, 1e-6 * size, 1e-30))
        seen = local.run(changed(local.leaves, sources.part(probe), times))
        change = (_all_values(sources, targets, seen) - clean)[columns]
        error = float((change - times * predicted[:, i]).abs().max())
        worst = max(worst, error / max(times * largest, size, 1e-30))
    return worst


def second_derivative(local: LocalPass, sources: Sources, targets: Sequence[Target], seed: int) -> float:
    """Largest |f(x + u) - f(x) - f(u) + f(0)| of the frozen network for random leaves u, relative to f's largest."""
    generator = torch.Generator().manual_seed(seed)
    x = {s: v.detach() for s, v in local.leaves.items()}
    u = {s: torch.randn(v.shape, generator=generator) * v.std().clamp(min=1e-6) for s, v in x.items()}
    f = [
        _all_values(sources, targets, local.run({s: v.requires_grad_() for s, v in leaves.items()}))
        for leaves in (
            {s: x[s] + u[s] for s in x},
            {s: v.clone() for s, v in x.items()},
            u,
            {s: 0 * v for s, v in x.items()},
        )
    ]
    return float((f[0] - f[1] - f[2] + f[3]).abs().max() / max(float(f[0].abs().max()), 1e-30))


def frozen_shares(local: LocalPass, sources: Sources, targets: Sequence[Target], seed: int) -> list[Frozen]:
    """For each rule, the share of the targets' squared change under live ablations that is lost by freezing it alone:
    sum (live - frozen)^2 / sum live^2 over `ABLATED` latents, interval by bootstrap over them. Choices (routing) are
    held throughout."""
    active = torch.cat([torch.arange(e.first, e.first + len(e))[e.z.values != 0] for e in sources.events])
    active = active if len(active) else torch.arange(sources.constants)
    order = torch.randperm(len(active), generator=torch.Generator().manual_seed(seed + 1))
    chosen = active[order[:ABLATED]].tolist()

    def changes(run: Callable[[dict], Seen]) -> np.ndarray:
        def values(leaves: dict) -> Tensor:
            seen = run(leaves)
            return torch.stack([t.value(seen).detach().float() for t in targets])

        clean = values(changed(local.leaves, {}, 0.0))
        return torch.stack([values(changed(local.leaves, sources.part(c), -1.0)) - clean for c in chosen]).numpy()

    rules = tuple(dict.fromkeys(local.tape.rules.values()))
    live = changes(lambda leaves: local.run(leaves, frozen=False))
    out = []
    for (rule, operation), modules in local.tape.uses().items():
        # With choices thawed, other places could reach an expert than those whose factors are held.
        thawed = [r for r in rules if r not in (rule, "routing")]
        frozen = changes(lambda leaves, thawed=thawed: local.run(leaves, thawed=thawed))
        lost, whole = ((live - frozen) ** 2).sum(1), (live**2).sum(1)
        share = (
            _ratio(lost, whole, "fraction", seed) if len(chosen) > 1 else NotMeasured(not_measured="too few sources")
        )
        out.append(Frozen(rule=rule, operation=operation, modules=modules, share=share))
    return out


def live_agreement(
    local: LocalPass,
    sources: Sources,
    targets: Sequence[Target],
    graph: Graph,
    columns: Int[Tensor, " nodes"],
    n: int,
    seed: int,
    progress: Progress = SILENT,
) -> Live:
    """Remove n latents, one at a time, from the network with nothing frozen but what other dictionaries wrote, and
    compare the change of every value they have an edge to with minus that edge.

    columns: the column of each node of the graph (targets after all sources). Intervals by bootstrap over the removed
    latents.
    """
    clean = _all_values(sources, targets, local.run(local.leaves, frozen=False))
    latents = graph.nodes.where("latent") & (graph.nodes.value > graph.nodes.threshold)
    used = torch.zeros(len(graph), dtype=torch.bool)
    used[graph.rows.sources.long()] = True
    candidates = (latents & used).nonzero().squeeze(-1)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    found = []
    with progress.task("removing latents", min(n, len(order)), "latents") as task:
        for i, node in enumerate(candidates[order[:n]].tolist()):
            task.update(i)
            out = graph.rows.sources == node
            seen = local.run(changed(local.leaves, sources.part(int(columns[node])), -1.0), frozen=False)
            change = (_all_values(sources, targets, seen) - clean)[columns[graph.rows.targets[out]]]
            found.append(torch.stack([-graph.rows.weights[out], change], 1))
    if len(found) < 2:
        nothing = NotMeasured(not_measured=f"{len(found)} latents have an edge; at least 2 are needed")
        return Live(slope=nothing, r2=nothing, rank=nothing)
    return _figures([f.double().numpy() for f in found], seed)


def _figures(found: list[np.ndarray], seed: int) -> Live:
    sums = np.array([[(f[:, 0] ** 2).sum(), (f[:, 0] * f[:, 1]).sum(), (f[:, 1] ** 2).sum()] for f in found])
    sums = np.concatenate([sums, [[((f[:, 1] - f[:, 0]) ** 2).sum()] for f in found]], 1)
    drawn = _resamples(len(found), seed)
    total = drawn @ sums
    slope = _metric(sums[:, 1].sum() / sums[:, 0].sum(), total[:, 1] / total[:, 0], "ratio", len(found))
    r2 = _metric(1 - sums[:, 3].sum() / sums[:, 2].sum(), 1 - total[:, 3] / total[:, 2], "fraction", len(found))
    pairs = np.concatenate(found)
    ranks = [
        _spearman(np.concatenate([found[i] for i in np.repeat(np.arange(len(found)), d)]))
        for d in drawn[:200].astype(int)
    ]
    return Live(slope=slope, r2=r2, rank=_metric(_spearman(pairs), np.array(ranks), "correlation", len(found)))


def _spearman(pairs: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(pairs, axis=0), axis=0).astype(float)
    a, b = (ranks - ranks.mean(0)).T
    return float((a @ b) / max(np.sqrt((a @ a) * (b @ b)), 1e-30))


def _resamples(n: int, seed: int) -> np.ndarray:
    """How often each of n units is drawn, in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def _ratio(over: np.ndarray, under: np.ndarray, unit: str, seed: int) -> Metric:
    if not under.sum() > 0:
        return NotMeasured(not_measured="no ablation changed a target")
    drawn = _resamples(len(over), seed)
    return _metric(over.sum() / under.sum(), drawn @ over / np.maximum(drawn @ under, 1e-300), unit, len(over))


def _metric(value: float, resampled: np.ndarray, unit: str, n: int) -> Measured:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Measured(value=float(value), low=float(min(low, value)), high=float(max(high, value)), unit=unit, n=n)
