"""The certificate of a graph's bookkeeping, and beside it the truth: agreement with live interventions."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.local import LocalPass, Seen, Slot
from understudy.attribution.rows import Engine, Target
from understudy.attribution.sources import Sources
from understudy.core.bootstrap import Bootstrap
from understudy.core.correlation import spearman
from understudy.core.graph import Graph
from understudy.core.records.graph import Certificate, Frozen, Live
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import SILENT, Progress

TOLERANCE = 1e-4
"""Relative error above which a graph of fp32 is not called exact."""
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
        share = _share(lost, whole, seed)
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
        return Live(slope=nothing, r2=nothing, r2_median=nothing, r2_scaled=nothing, rank=nothing)
    return _figures([f.double().numpy() for f in found], seed)


def _figures(found: list[np.ndarray], seed: int) -> Live:
    """found: for each removed latent its (predicted, measured) pairs, [n, 2]. Pairs count, so latents with many edges
    weigh more."""
    pp, pm, mm = (np.array([f[:, i] @ f[:, j] for f in found]) for i, j in ((0, 0), (0, 1), (1, 1)))
    missed = mm - 2 * pm + pp
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (pm.sum() - pm) / (pp.sum() - pp)
        own = 1 - missed / mm
    bootstrap = Bootstrap(len(found), seed)

    def r2(missed: np.ndarray) -> Metric:
        return bootstrap.figure(lambda missed, mm: 1 - missed / mm, "fraction", missed=missed, mm=mm)

    return Live(
        slope=bootstrap.ratio(pm, pp, "ratio"),
        r2=r2(missed),
        r2_median=_median(own[np.isfinite(own)], len(found), seed),
        r2_scaled=r2(mm - 2 * slopes * pm + slopes**2 * pp),
        rank=bootstrap.over_resamples(lambda i: spearman(np.concatenate([found[j] for j in i])), "correlation"),
    )


def _median(own: np.ndarray, removed: int, seed: int) -> Metric:
    """own: the R2 of each removed latent that changed anything; only these are counted and drawn again."""
    if len(own) < 2:
        said = f"{len(own)} of {removed} removed latents changed anything; at least 2 are needed"
        return NotMeasured(not_measured=said)
    return Bootstrap(len(own), seed).over_resamples(lambda i: float(np.median(own[i])), "fraction", 1000)


def _share(lost: np.ndarray, whole: np.ndarray, seed: int) -> Metric:
    if not whole.sum() > 0:
        return NotMeasured(not_measured="no ablation changed a target")
    return Bootstrap(len(whole), seed).ratio(lost, whole, "fraction")
