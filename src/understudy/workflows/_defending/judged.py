"""Which graph removes a backdoor: every defence at every dose, and the strongest within each budget of clean loss."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.records.defence import DefenceRow, Defences
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import Progress
from understudy.organisms._network import OrganismNetwork
from understudy.workflows._defending.defences import (
    Defence,
    Dose,
    Tuning,
    errors_kept,
    fine_tuning,
    graph_defences,
    pruning,
    training_flops,
)
from understudy.workflows._defending.problem import Judge, Outcome, Problem, mean_loss, organism, outcome
from understudy.workflows.train import TrainConfig, train

BUDGETS = (0.005, 0.02, 0.05)
"""Nats of clean loss that a defence may cost."""
WRITES = "attn_out.*,mlp_out.*"
"""All that blocks add to the stream. Through MLPs alone the backdoor passes by in attention."""
N_LATENTS, K, PLACES = 128, 8, 300_000
ITSELF = NotMeasured(not_measured="it is the graph, or not chosen by a budget")
DEARER = NotMeasured(not_measured="no graph costs so little")


def defend(seed: int, progress: Progress) -> Defences:
    """The organism `backdoor` under every defence."""
    problem, world = organism(seed, progress)
    twin = world.negative
    assert twin is not None
    groups = dictionaries(problem, "sae", WRITES, problem.clean, seed, progress)
    flops = training_flops(problem.network, groups, PLACES)
    graph, chance = graph_defences(problem, groups, problem.clean, flops, "refit", seed, progress)
    others = [chance, *_other_graphs(problem, groups, flops, seed, progress)]
    tuning = Tuning(flops, seed)
    others += [fine_tuning(problem, tuning, progress), *pruning(problem, tuning, progress)]
    fixed = [
        Defence("network", [Dose("", problem.network.forward)], 0.0),
        Defence("clean twin", [Dose("", twin.network.forward)], problem.flops),
        errors_kept(problem.network, groups),
    ]
    return judged(problem, fixed, [graph, *others], seed, progress)


def dictionaries(
    problem: Problem, kind: str, sites: str, data: Sequences, seed: int, progress: Progress
) -> list[Group]:
    """Trained on `data` as `understudy train` does."""
    assert isinstance(problem.network, OrganismNetwork)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            kind=kind, sites=sites, n_latents=N_LATENTS, k=K, tokens=PLACES, batch=1024, seed=seed,
            out=Path(folder) / "run", checkpoint_s=3600,
        )  # fmt: skip
        return train(config, progress, problem.network.on({"train": data, "held_out": data})).groups


def _other_graphs(problem: Problem, groups: list[Group], flops: float, seed: int, progress: Progress) -> list[Defence]:
    """Other policies and controls: nothing refitted; MLPs alone; dictionaries and ranking that saw the poison."""
    plain, _ = graph_defences(problem, groups, problem.clean, flops, "zero", seed, progress)
    mlps = dictionaries(problem, "transcoder", "mlp", problem.clean, seed, progress)
    spent = training_flops(problem.network, mlps, PLACES)
    alone, _ = graph_defences(problem, mlps, problem.clean, spent, "refit", seed, progress)
    saw = dictionaries(problem, "sae", WRITES, problem.poisoned, seed, progress)
    control, _ = graph_defences(problem, saw, problem.poisoned, flops, "refit", seed, progress)
    names = ("graph, nothing refitted", "graph of MLPs alone", "graph made on poisoned data")
    return [Defence(n, d.doses, d.flops) for n, d in zip(names, (plain, alone, control), strict=True)]


def judged(
    problem: Problem, fixed: Sequence[Defence], defences: Sequence[Defence], seed: int, progress: Progress,
    budgets: Sequence[float] = BUDGETS,
) -> Defences:  # fmt: skip
    """Rows of all doses; and of the chosen ones, the first of `defences` the one that others are compared with."""
    own = outcome(problem, problem.network.forward)
    judge = Judge.of(own, seed)
    before = mean_loss(problem.network, problem.network.forward, problem.choosing)
    doses, chosen = [], []
    best: dict[float, Outcome] = {}
    wanted = [*fixed, *defences]
    with progress.task("judging defences", sum(len(d.doses) for d in wanted), "doses") as task:
        for defence in wanted:
            found: list[tuple[Dose, Outcome, float]] = []
            for dose in defence.doses:
                cost = mean_loss(problem.network, dose.run, problem.choosing) - before
                found.append((dose, outcome(problem, dose.run), cost))
                task.update(len(doses) + len(found), defence.name)
            doses += [_row(judge, defence, dose, result, None, ITSELF) for dose, result, _ in found]
            if defence in fixed:
                continue
            for budget in budgets:
                within = [(dose, result) for dose, result, cost in found if cost <= budget]
                if not within:
                    cheapest = min(cost for _, _, cost in found)
                    chosen.append(_none(defence, budget, f"every dose costs {cheapest:.3g} nats or more"))
                    continue
                dose, result = within[-1]
                than: Metric = ITSELF
                if defence is defences[0]:
                    best[budget] = result
                else:
                    than = judge.against(result, best[budget]) if budget in best else DEARER
                chosen.append(_row(judge, defence, dose, result, budget, than))
    return Defences(
        organism=problem.network.name, seed=seed, sequences=problem.held_out.n_sequences, flops=problem.flops,
        doses=doses, chosen=chosen,
    )  # fmt: skip


def _row(judge: Judge, defence: Defence, dose: Dose, found: Outcome, budget: float | None, than: Metric) -> DefenceRow:
    return DefenceRow(
        defence=defence.name, dose=dose.name, budget=budget, delta_loss=judge.delta_loss(found),
        attack=judge.attack(found), than_graph=than, after_trigger=judge.after_trigger(found), flops=defence.flops,
    )  # fmt: skip


def _none(defence: Defence, budget: float, why: str) -> DefenceRow:
    none = NotMeasured(not_measured=why)
    return DefenceRow(
        defence=defence.name, dose="none", budget=budget, delta_loss=none, attack=none, than_graph=none,
        after_trigger=none, flops=defence.flops,
    )  # fmt: skip
