"""`run`: run graphs of growing size in the network's place, beside rivals of the same size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput
from understudy.core.records.graph_curve import ACTIVATION, GRAPH, NEURONS, RANDOM, GraphCurve
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.replacement import Replacement
from understudy.data import Order
from understudy.edits.graph_groups import own_input
from understudy.edits.restriction import Dropped, restricted
from understudy.metrics import Bootstrap
from understudy.pruning import activation, influence
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._judging.labels import columns
from understudy.workflows._judging.passes import CLEAN, UNDERSTUDY, behaviour_pass
from understudy.workflows._running.arms import (
    LINEAR,
    MEAN,
    NOTHING,
    Treatment,
    arm_name,
    neuron_groups,
    reference_arms,
    size_arms,
)
from understudy.workflows._running.expressed import expressed
from understudy.workflows._running.figures import CurveFigures
from understudy.workflows._running.opening import Opened, node_scores, open_source
from understudy.workflows._running.own_input import (
    OwnInput,
    neuron_occurrences,
    neurons_at_places,
    node_rankings,
    pruned,
    target_places,
)
from understudy.workflows._running.ranking import Ranking, at_random, by_score, importance
from understudy.workflows._running.rows import training_rows
from understudy.workflows.evaluate import address, described, documents

SHARE = 0.9
BY_GRADIENT = (
    "mean over {n} training sequences of |activation x gradient of the loss|, all latents in place: to first order, "
    "the nats that dropping a latent at one place changes"
)
BY_INFLUENCE = "influence on the targets in the graph, of a latent the sum over its places"


class RunConfig(Config):
    """What to run, at which sizes, and on how much."""

    source: Path
    """Folder of a finished run (its latents are ranked over a data set), or the graph of one input, X.acg."""
    nodes: str | None = None
    """Sizes, latents of all dictionaries together: 50,100,200. By default seven, each half of the next."""
    data: str | None = None
    """Data to judge on. By default the held-out part of what a run was trained on; for a graph, its own input."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    sequences: PositiveInt = 96
    """Held-out sequences; intervals rest on them."""
    ranking_sequences: PositiveInt = 64
    """Training sequences that latents are ranked on."""
    dropped: Dropped = "zero"
    """What becomes of latents that are not kept: zero, mean, refit or low_rank, fitted on training data."""
    rank: PositiveInt = 8
    """Rank of each error model (low_rank)."""
    expression: bool = False
    """A graph on its own input: evaluate it by its own edges and thresholds too, no block of the network running."""
    seed: int = 0
    """Decides which sequences, the bootstrap's resamples, the random graphs and the edits."""
    out: Path | None = None
    """Folder for curve.json and curve.html; by default the run's or graph's own."""


def run(config: RunConfig, progress: Progress = SILENT, network: Network | None = None) -> GraphCurve:
    """The curve: behaviour against latents kept; also written as curve.json. network: as for `open_run`.

    Raises BadInput for a graph of other dictionaries or another network, BadFolder, BadWeights, BadData.
    """
    grid = None if config.nodes is None else sizes(config.nodes)
    opened = open_source(config.source, network or config.network)
    if opened.graph is not None and config.data is None:
        if config.dropped != "zero":
            raise BadInput(
                f"--dropped {config.dropped} fits features, but on its own input a graph runs occurrences: say what to "
                "judge on, e.g. --data stdlib."
            )
        curve = _on_own_input(config, opened, grid, progress)
    else:
        if config.expression:
            raise BadInput(
                "--expression evaluates the edges of one input: give the graph of one, X.acg, without --data."
            )
        curve = _on_data(config, opened, grid, progress)
    folder = curve_folder(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_text("curve.json", curve.model_dump_json(indent=1) + "\n")
    progress.say(f"curve written to {folder.file('curve.json')}")
    return curve


def curve_folder(config: RunConfig) -> RunFolder:
    """Where the curve is written."""
    return RunFolder(config.out or address(config.source)[0])


@dataclass(frozen=True)
class _Rankings:
    """Selections with their order of latents, what the graph's is by, and notes on those that cannot be."""

    by: dict[str, Ranking]
    ranked_by: str
    notes: dict[str, str]


def _on_data(config: RunConfig, opened: Opened, grid: list[int] | None, progress: Progress) -> GraphCurve:
    network, groups = opened.network, opened.groups
    data, context = config.data or opened.data, opened.context
    enough = config.sequences * (context or DEFAULT_CONTEXT)
    held_out = open_sequences(network, data, "held_out", context, enough, opened.skip_first)
    train = open_sequences(network, opened.data, "train", context, 1_000_000, opened.skip_first)
    n = min(config.sequences, len(held_out))
    if n < 2:
        raise BadData(f"{data} gives {n} held-out sequences; intervals need at least 2.")
    picked = Order(len(held_out), config.seed).stream(0, n)
    ranked_on = Order(len(train), config.seed + 1).stream(0, min(config.ranking_sequences, len(train)))
    rankings = _rankings(config, opened, train, ranked_on, progress)
    total = len(rankings.by[GRAPH])
    with torch.no_grad():
        sites = [s for r in rankings.by.values() for g in r.groups for s in (*g.reads, *g.writes)]
        sample = training_rows(network, train, sites, config.seed, progress)
        treat = Treatment(config.dropped, config.rank, sample)
        arms = size_arms(rankings.by, grid or halves(total), treat, progress)
        labels = columns(network, data, held_out, None, picked, progress)
        every = [*reference_arms(groups, treat, sample), *arms.values()]
        judged = behaviour_pass(network, groups, every, held_out, picked, labels, progress)
    if isinstance(judged, NotMeasured):
        raise BadInput(judged.not_measured)
    bootstrap = Bootstrap(n, config.seed, clusters=documents(held_out, picked))
    figures = CurveFigures(judged, bootstrap, network.divergence_unit)
    n_latents = sum(g.n_latents for g in groups)
    ends = {name: [(m, arm_name(name, m)) for s, m in sorted(arms) if s == name] for name in rankings.by}
    for name, found in ends.items():
        # All neurons are the network itself.
        found.append((len(rankings.by[name]), CLEAN) if name == NEURONS else (n_latents, UNDERSTUDY))
    return GraphCurve(
        source=str(config.source),
        network=opened.name,
        data=described(network, data),
        ranked_by=rankings.ranked_by,
        dropped=config.dropped,
        score="the loss that all latents save over a mean ablation",
        pseudo_features=config.rank * len({s for g in groups for s in g.writes}) * (config.dropped == "low_rank"),
        places=int(judged.sums[CLEAN].count[0].sum()),
        sequences=n,
        units=bootstrap.n_units,
        share=SHARE,
        loss_clean=judged.sums[CLEAN].loss(bootstrap),
        everything=figures.size(UNDERSTUDY, GRAPH, n_latents),
        nothing=figures.size(NOTHING, GRAPH, 0),
        sizes=[figures.size(arm_name(name, m), name, m) for name, m in arms],
        enough={name: figures.enough(e, MEAN, SHARE) for name, e in ends.items()},
        enough_beyond_linear={name: figures.enough(e, LINEAR, SHARE) for name, e in ends.items()},
        notes=rankings.notes,
    )


def _rankings(config: RunConfig, opened: Opened, train: Sequences, ranked_on: Tensor, progress: Progress) -> _Rankings:
    network, groups = opened.network, opened.groups
    if opened.graph is None:
        found = importance(network, groups, train, ranked_on, progress)
        by = {GRAPH: by_score(groups, found.effect), RANDOM: at_random(groups, found.rate, config.seed)}
        by[ACTIVATION] = by_score(groups, found.mass)
        ranked_by = BY_GRADIENT.format(n=len(ranked_on))
    else:
        graph = opened.graph
        scores = node_scores(graph, groups, influence(graph))
        by = {GRAPH: by_score(groups, scores), RANDOM: at_random(groups, scores, config.seed)}
        by[ACTIVATION] = by_score(groups, node_scores(graph, groups, activation(graph)))
        ranked_by = BY_INFLUENCE
    neurons = neuron_groups(network, groups)
    if isinstance(neurons, str):
        return _Rankings(by, ranked_by, {NEURONS: neurons})
    own = importance(network, neurons, train, ranked_on, progress)
    return _Rankings(by | {NEURONS: by_score(neurons, own.effect)}, ranked_by, {})


@torch.no_grad()
def _on_own_input(config: RunConfig, opened: Opened, grid: list[int] | None, progress: Progress) -> GraphCurve:
    graph, network, groups = opened.graph, opened.network, opened.groups
    assert graph is not None
    batch: Batch = own_input(graph).to(network.device)
    judge = OwnInput(network, batch, target_places(graph), opened.skip_first)
    rankings = node_rankings(graph, config.seed)
    total = len(rankings[GRAPH])
    wanted = [m for m in grid or halves(total) if m < total]
    built: list[tuple[str, int, Any]] = [
        (name, m, pruned(graph, groups, nodes[:m])) for name, nodes in rankings.items() for m in wanted
    ]
    built.append((GRAPH, total, pruned(graph, groups, rankings[GRAPH])))
    neurons, notes = neuron_groups(network, groups), {}
    if isinstance(neurons, str):
        notes[NEURONS] = neurons
    else:
        found = neuron_occurrences(Replacement(network, neurons), batch)
        built += [(NEURONS, m, neurons_at_places(neurons, found, m)) for m in wanted]
        notes[NEURONS] = "top_neurons: those that write most; `understudy attribute --network` ranks them by influence"
    nothing = judge.size(restricted(groups, {}), GRAPH, 0)
    everything = judge.size(groups, GRAPH, sum(g.n_latents for g in groups))
    with progress.task("running graphs", len(built), "graphs") as task:
        rows = []
        for i, (name, m, parts) in enumerate(built):
            task.update(i, arm_name(name, m))
            rows.append(judge.with_kept(judge.size(parts, name, m), nothing, everything))
        task.update(len(built))
    said = None
    if config.expression:
        said = expressed(graph, network, groups, batch, wanted, config.seed, opened.skip_first, progress)
    return GraphCurve(
        source=str(config.source),
        network=opened.name,
        data="its own input",
        ranked_by=BY_INFLUENCE.split(",")[0],
        dropped=config.dropped,
        score="the divergence that all latents save over none, at the places of the targets",
        places=len(judge.places),
        sequences=1,
        units=1,
        share=SHARE,
        loss_clean=rows[0].loss,
        everything=judge.with_kept(everything, nothing, everything),
        nothing=judge.with_kept(nothing, nothing, everything),
        sizes=rows,
        notes=notes,
        expression=said,
    )


def sizes(text: str) -> list[int]:
    """`50,100,200` as numbers. Raises BadInput."""
    try:
        found = sorted({int(part) for part in text.replace(" ", "").split(",") if part})
    except ValueError:
        raise BadInput(f"--nodes {text}: sizes are whole numbers with commas between them, like 50,100,200.") from None
    if not found or found[0] < 1:
        raise BadInput(f"--nodes {text}: a graph of no nodes is the `nothing` row already; ask for 1 or more.")
    return found


def halves(total: int) -> list[int]:
    """Up to seven sizes below `total`, each half of the next."""
    return sorted({total // 2**i for i in range(1, 8) if total // 2**i})
