"""Defences: each a series of doses, the weakest first, fitted on clean data only. No dose knows the trigger."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from understudy.core.batch import NO_TARGET, Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.core.replacement import MEASURED_ERRORS, Replacement
from understudy.core.site import Site
from understudy.core.weights import load_tensors, save_tensors
from understudy.data import Order
from understudy.edits.restriction import Dropped
from understudy.workflows._defending.problem import Problem, Run, parameters
from understudy.workflows._running.arms import Treatment
from understudy.workflows._running.ranking import Ranking, at_random, by_score, importance
from understudy.workflows._running.rows import training_rows

RANKED_ON = 64
"""Clean sequences that latents are ranked on."""
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of all neurons: how many are pruned."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates of fine-tuning."""
AFTER_PRUNING = 1e-3
BATCH = 64


@dataclass(frozen=True)
class Dose:
    """One strength of a defence: its name for people, and the defended network."""

    name: str
    run: Run


@dataclass(frozen=True)
class Defence:
    """One method. flops: training compute of one dose, ranking and fitting included."""

    name: str
    doses: Sequence[Dose]
    flops: float


# -- graphs ---------------------------------------------------------------------------------------------------------


def training_flops(network: Network, groups: Sequence[Group], places: int) -> float:
    """6 x parameters of the dictionaries + 2 x those of the network, for each place: activations are recorded once."""
    dictionaries = sum(p.numel() for g in groups for p in g.parameters())
    return float(places) * (6 * dictionaries + 2 * parameters(network))


def sizes(total: int) -> list[int]:
    """Below `total`, each 1/sqrt(2) of the one before; the largest (the weakest dose) first."""
    return [round(total * 2 ** (-i / 2)) for i in range(1, 9)]


def graph_defences(
    problem: Problem, groups: Sequence[Group], data: Sequences, flops: float, dropped: Dropped, seed: int,
    progress: Progress, ranked_on: int = RANKED_ON, wanted: Sequence[int] | None = None,
) -> tuple[Defence, Defence]:  # fmt: skip
    """The graph of each size, latents ranked on `data` by their effect on the loss, and random graphs of these sizes.

    What a graph drops is treated alike in both. ranked_on: sequences of `data`. wanted: latents kept, most first; by
    default `sizes`.
    """
    network = problem.network
    picked = Order(len(data), seed).stream(0, ranked_on)
    found = importance(network, groups, data, picked, progress)
    sample = training_rows(network, data, [s for g in groups for s in (*g.reads, *g.writes)], seed, progress)
    treat = Treatment(dropped, 8, sample)
    rankings = {"graph": by_score(groups, found.effect), "random graph": at_random(groups, found.rate, seed)}
    wanted = wanted or sizes(sum(g.n_latents for g in groups))
    made = [
        Defence(name, [_graph(network, ranking, n, treat) for n in wanted], flops) for name, ranking in rankings.items()
    ]
    return made[0], made[1]


@torch.no_grad()
def _graph(network: Network, ranking: Ranking, n: int, treat: Treatment) -> Dose:
    replacement = Replacement(network, treat(ranking.groups, ranking.first(n)))
    return Dose(f"{n} latents", lambda batch: replacement.run(batch).output)


def errors_kept(network: Network, groups: Sequence[Group]) -> Defence:
    """Control: all latents and their measured errors. It is the network, backdoor and all."""
    replacement = Replacement(network, groups)
    run: Run = lambda batch: replacement.run(batch, MEASURED_ERRORS, replacement.record(batch)).output  # noqa: E731
    return Defence("errors kept", [Dose("all latents", run)], 0.0)


# -- rivals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """How a rival is trained on: with as many FLOPs as it is given."""

    flops: float
    seed: int
    decays: bool = False
    """The rate rises over a tenth of the steps and falls to 0; else it is constant."""
    keep: Path | None = None
    """Folder where finished weights are kept, and taken from."""


def fine_tuning(problem: Problem, tuning: Tuning, progress: Progress, rates: Sequence[float] = RATES) -> Defence:
    """The network trained on, on clean data, at each rate."""
    doses = [Dose(f"lr {r:g}", fine_tuned(problem, tuning, r, {}, progress, f"tuned_{r:g}").forward) for r in rates]
    return Defence("fine-tuned", doses, tuning.flops)


def pruning(
    problem: Problem, tuning: Tuning, progress: Progress, shares: Sequence[float] = SHARES, rate: float = AFTER_PRUNING
) -> tuple[Defence, Defence]:
    """Neurons that are least active on clean data, over all modules together, set to 0; and the same then fine-tuned.

    Source: Liu, Dolan-Gavitt, Garg 2018, Fine-Pruning, section 3.2; theirs prunes one layer.
    """
    network = problem.network
    activity = _activity(problem, tuning.seed)
    alone, tuned = [], []
    for part in shares:
        masks = _least_active(activity, part)
        alone.append(Dose(f"{part:.0%} of neurons", _masked(network, masks)))
        after = fine_tuned(problem, tuning, rate, masks, progress, f"pruned_{part:g}_{rate:g}")
        tuned.append(Dose(f"{part:.0%} of neurons", _masked(after, masks)))
    return Defence("neurons pruned", alone, 0.0), Defence("pruned, fine-tuned", tuned, tuning.flops)


@torch.no_grad()
def _activity(problem: Problem, seed: int) -> dict[Site, Tensor]:
    """Mean |activation| of every hidden unit on clean data."""
    network = problem.network
    found = [own.site for part in network.parts() if (own := network.neurons(part)) is not None]
    batch = problem.clean.batch(Order(len(problem.clean), seed).stream(0, 8 * RANKED_ON))
    return {s: v.abs().flatten(0, -2).mean(0) for s, v in network.record(batch, found).items()}


def _least_active(activity: dict[Site, Tensor], part: float) -> dict[Site, Tensor]:
    """1 for neurons that stay."""
    flat = torch.cat(list(activity.values()))
    gone = torch.zeros_like(flat).index_fill_(0, flat.argsort()[: round(part * len(flat))], 1.0)
    parts = (1 - gone).split([len(v) for v in activity.values()])
    return dict(zip(activity, parts, strict=True))


def _masked(network: Network, masks: dict[Site, Tensor]) -> Run:
    def run(batch: Batch):
        with _without(network, masks):
            return network.forward(batch)

    return run


@contextmanager
def _without(network: Network, masks: dict[Site, Tensor]) -> Iterator[None]:
    def edit(mask: Tensor):
        return lambda value, call: value * mask

    with ExitStack() as stack:
        if masks:
            stack.enter_context(network.edited({s: edit(m) for s, m in masks.items()}))
        yield


def fine_tuned(
    problem: Problem, tuning: Tuning, rate: float, masks: dict[Site, Tensor], progress: Progress, name: str = "tuned"
) -> Network:
    """A copy trained on clean data by AdamW (weight decay 0.01), 6 x parameters FLOPs a place.

    masks: neurons held at 0 meanwhile. name: of the file, where weights are kept.
    """
    network = deepcopy(problem.network)
    path = None if tuning.keep is None else tuning.keep / f"{name}.safetensors"
    if path is not None and path.exists():
        return with_weights(network, path)
    network.module.requires_grad_(True)
    places = problem.held_out.inputs["input_ids"].shape[1] * BATCH
    steps = max(1, round(tuning.flops / (6 * parameters(network) * places)))
    order = Order(len(problem.clean), tuning.seed)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=rate, weight_decay=0.01)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1) if tuning.decays else None
    with progress.task(f"fine-tuning at {rate:g}", steps, "steps") as task, _without(network, masks):
        for step in range(steps):
            batch = problem.clean.batch(order.batch(step, BATCH))
            loss = network.loss(network.forward(batch), batch)
            assert isinstance(loss, Tensor)
            assert batch.targets is not None
            optimizer.zero_grad()
            loss[batch.targets != NO_TARGET].mean().backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            task.update(step + 1)
    network.module.requires_grad_(False)
    if path is not None:
        save_tensors(path, dict(network.module.named_parameters()))
    return network


def with_weights(network: Network, path: Path) -> Network:
    """The network with the parameters that are kept at `path`."""
    kept = load_tensors(path)
    with torch.no_grad():
        for name, p in network.module.named_parameters():
            p.copy_(kept[name])
    return network
