"""`ablate`: which sparsity rule is best at equal L0 and equal places of training, as a frontier with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import PositiveInt

from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.frontier import Frontier, Rate
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._grid.bench import GridConfig, grid_folder, open_bench
from understudy.workflows._grid.cells import Cell, names, numbers, start_l1, takes_k, unique
from understudy.workflows._grid.equal import at_equal_l0, points, worst_chord
from understudy.workflows._grid.levels import choose_rate, missing_levels
from understudy.workflows._grid.stage import Stage, in_words
from understudy.workflows.evaluate import described

L1_LEVELS = (0.25, 0.5, 1.0, 2.0)
"""Weights of a penalty that are tried first, over the rule's own; others follow where L0s are still missing."""
Levels = Mapping[str, Sequence[float]]
"""By rule, what its cells ask for: an L0, or the weight of a penalty."""
ROUNDS = 3
"""How often levels are added for L0s that no run has reached."""


class AblateConfig(GridConfig):
    """Which rules, at which L0."""

    rules: str = "topk,batch_topk,jumprelu,gated,relu"
    """Names as `train --sparsity` takes them, separated by commas; classes of your own by their path."""
    l0: str = "8,16,32"
    """Latents a place at which rules are compared, two at least. What a run measures counts, not what it asked for."""
    n_latents: PositiveInt = 1024
    """Latents of each dictionary."""
    lr_factors: str = "0.5,1,2"
    """Learning rates tried for each rule at the middle L0, over the recipe's; its best is used for all of its runs.
    1 alone trains every rule at the recipe's rate."""
    out: Path = Path("runs/ablate")
    """Folder of the ablation; each run is in cells/, and the other commands open it."""


def ablate(config: AblateConfig, progress: Progress = SILENT, network: Network | None = None) -> Frontier | str:
    """The frontier, written to frontier.json; with `plan` what would be run, as text.

    Killed at any moment, `resume` goes on, keeps what is done and ends in the same figures. Raises BadInput,
    UnknownName, BadFolder, BadData.
    """
    with grid_folder(config) as (folder, config):
        rules, l0s = names(config.rules, "--rules"), numbers(config.l0, "--l0", whole=True, least=2)
        factors = numbers(config.lr_factors, "--lr-factors")
        exact = {rule: takes_k(rule) for rule in rules}  # refused before anything is opened
        stage = Stage(*open_bench(config, network), folder, config, progress)
        levels = {rule: l0s if exact[rule] else _weights(stage, rule, config.n_latents) for rule in rules}
        tried = _tried(config, levels, factors)
        main = _cells(config, levels, {})
        said = _plan(stage, config, levels, tried, main)
        if config.plan:
            return said
        progress.say(said)
        folder.write_text("config.yaml", config.to_yaml())
        stage.run([cell for cells in tried.values() for cell in cells])
        rates = [choose_rate(stage, cells) for cells in tried.values()]
        main = _complete(stage, _cells(config, levels, {rate.rule: rate.factor for rate in rates}), l0s)
        card = _card(stage, config, l0s, main, rates)
        written = folder.write_text("frontier.json", card.model_dump_json(indent=1) + "\n")
        progress.say(f"written to {written}")
        return card


def _weights(stage: Stage, rule: str, n_latents: int) -> list[float]:
    """Levels of a rule that goes by the weight of its penalty."""
    width = stage.bench.network.width(stage.bench.site)
    return [share * start_l1(rule, n_latents, width) for share in L1_LEVELS]


def _tried(config: AblateConfig, levels: Levels, factors: Sequence[float]) -> dict[str, list[Cell]]:
    """Cells of the learning-rate check by rule: its middle level, the first seed."""
    return {
        rule: [Cell(rule, own[len(own) // 2], config.n_latents, factor, config.seed) for factor in factors]
        for rule, own in levels.items()
    }


def _cells(config: AblateConfig, levels: Levels, factors: Mapping[str, float]) -> list[Cell]:
    return [
        Cell(rule, level, config.n_latents, factors.get(rule, 1.0), config.seed + i)
        for i in range(config.seeds)
        for rule, own in levels.items()
        for level in own
    ]


def _complete(stage: Stage, cells: list[Cell], l0s: Sequence[float]) -> list[Cell]:
    """Run the cells, and others beyond them while a rule's runs do not reach from the lowest L0 to the highest."""
    for _ in range(ROUNDS):
        stage.run(cells)
        runs = stage.drawn(cells)["thresholds"]
        more = list(cells)
        for own in ([r for r in runs if r.cell.rule == rule] for rule in dict.fromkeys(c.rule for c in cells)):
            seeds = {r.cell.seed for r in own}
            wanted = [missing_levels([r for r in own if r.cell.seed == seed], l0s) for seed in seeds]
            levels = sorted({level for found in wanted for level in found})
            more += [replace(own[0].cell, level=level, seed=seed) for level in levels for seed in seeds]
        if len(more := unique(more)) == len(cells):
            return cells
        cells = more
    stage.run(cells)
    return cells


def _plan(stage: Stage, config: AblateConfig, levels: Levels, tried: Mapping[str, Sequence[Cell]], main: list) -> str:
    """What will be run and about how long it takes here."""
    site, network = short_name(stage.bench.network, stage.bench.site), config.network
    lines = [
        f"{len(levels)} rules on {site} of {network}: {config.kind}, {config.n_latents:,} latents, {config.places:,} "
        "places each"
    ]
    for rule, own in levels.items():
        by = "k or aimed L0" if takes_k(rule) else "weight of its penalty"
        lines.append(f"  {rule}: {by} {', '.join(f'{x:.3g}' for x in own)}")
    check = [cell for cells in tried.values() for cell in cells]
    every = unique([*check, *main])
    n_factors = len(check) // len(levels)
    lines.append(f"learning rates: {n_factors} for each rule, at its middle level" if n_factors > 1 else "")
    lines.append(
        f"{len(every)} runs, {config.seeds} seed{'s' if config.seeds > 1 else ''}; more where a rule's runs miss an L0"
    )
    lines.append(f"about {in_words(stage.seconds(every))} on this machine, as it is now")
    return "\n".join(line for line in lines if line)


def _card(stage: Stage, config: AblateConfig, l0s: list[float], cells: list[Cell], rates: list[Rate]) -> Frontier:
    rules, forms = list(dict.fromkeys(c.rule for c in cells)), stage.drawn(cells)
    network, bootstrap = stage.bench.network, stage.bootstrap
    edges = [r.rule for r in rates if r.is_edge]
    notes = [f"stopped: {line}" for line in stage.stopped([*cells])]
    if edges:
        notes.append(f"the best learning rate tried was the lowest or highest for {', '.join(edges)}: try more")
    return Frontier(
        network=config.network, site=short_name(network, stage.bench.site), kind=config.kind,
        data=described(network, config.data), n_latents=config.n_latents, places=config.places,
        sequences=len(stage.judging.judged), units=bootstrap.n_units, seeds=config.seeds, rules=rules,
        points=points(forms, bootstrap), at=at_equal_l0(forms, rules, l0s, bootstrap), rates=rates,
        chord=worst_chord(forms, rules), notes=notes,
    )  # fmt: skip
