"""`scale`: how FVU goes with width and L0 and the best learning rate with width, fitted on a small grid and checked on
the next width."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import PositiveInt

from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, NonFiniteLoss
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scale import NAMES, BestRate, Cost, Prediction, ScaleCard
from understudy.metrics import Bootstrap, best_rate, joint_law, rate_law
from understudy.workflows._grid.bench import GridConfig, grid_folder, open_bench
from understudy.workflows._grid.cells import Cell, numbers, takes_k, unique
from understudy.workflows._grid.draws import Drawn, Draws, figure
from understudy.workflows._grid.levels import choose_rate
from understudy.workflows._grid.stage import Stage, in_words
from understudy.workflows.evaluate import described
from understudy.workflows.train import default_lr


class ScaleConfig(GridConfig):
    """Which widths and which k."""

    rule: str = "topk"
    """A rule that can be asked for its L0: topk, batch_topk, jumprelu, ..."""
    n_latents: str = "128,256,512"
    """Widths of the grid, three at least."""
    k: str = "8,16,32"
    """Latents at a place, two at least."""
    next_n: PositiveInt | None = None
    """The width that is predicted and then trained; by default twice the widest."""
    lr_factors: str = "0.5,1,2,4"
    """Learning rates tried at every width at the middle k, over the recipe's."""
    seeds: PositiveInt = 1
    """Runs of each cell that differ in their starting directions and in the order of the data."""
    out: Path = Path("runs/scale")
    """Folder of the grid; each run is in cells/, and the other commands open it."""


@dataclass(frozen=True)
class Axes:
    """What a configuration asks for, read."""

    rule: str
    widths: list[int]
    ks: list[int]
    factors: list[float]
    seeds: list[int]
    next_n: int

    @classmethod
    def of(cls, config: ScaleConfig) -> "Axes":
        """Raises BadInput, UnknownName."""
        if not takes_k(config.rule):
            raise BadInput(f"{config.rule} cannot be asked for an L0, so it has no place on a grid of k. Use topk.")
        widths = [int(n) for n in numbers(config.n_latents, "--n-latents", whole=True)]
        if len(widths) < 3:
            raise BadInput(f"--n-latents {config.n_latents}: a law in n needs 3 widths, or nothing tests it.")
        ks = [int(k) for k in numbers(config.k, "--k", whole=True, least=2)]
        next_n = config.next_n or 2 * widths[-1]
        if next_n <= widths[-1]:
            raise BadInput(f"--next-n {next_n} lies inside the grid; to predict is to go beyond {widths[-1]}.")
        factors = numbers(config.lr_factors, "--lr-factors")
        seeds = [config.seed + i for i in range(config.seeds)]
        return cls(config.rule, widths, ks, factors, seeds, next_n)

    @property
    def middle(self) -> int:
        return self.ks[len(self.ks) // 2]

    def rates(self, n: int, around: float = 1.0) -> list[Cell]:
        return [Cell(self.rule, self.middle, n, f * around, self.seeds[0]) for f in self.factors]

    def row(self, n: int, factor: float) -> list[Cell]:
        """Every k and seed at one width."""
        return [Cell(self.rule, k, n, factor, seed) for k in self.ks for seed in self.seeds]


def scale(config: ScaleConfig, progress: Progress = SILENT, network: Network | None = None) -> ScaleCard | str:
    """The card, written to scale.json; with `plan` what would be run, as text.

    Killed at any moment, `resume` goes on, keeps what is done and ends in the same figures. Raises BadInput,
    UnknownName, BadFolder, BadData; NonFiniteLoss where a cell of the grid diverged at every rate.
    """
    with grid_folder(config) as (folder, config):
        axes = Axes.of(config)
        for n in (*axes.widths, axes.next_n):  # refused before anything is opened
            for cell in axes.row(n, 1.0):
                cell.config(config.base(), folder.path)
        stage = Stage(*open_bench(config, network), folder, config, progress)
        said = _plan(stage, config, axes)
        if config.plan:
            return said
        progress.say(said)
        folder.write_text("config.yaml", config.to_yaml())
        stage.run([cell for n in axes.widths for cell in axes.rates(n)])
        factors = {n: choose_rate(stage, axes.rates(n)).factor for n in axes.widths}
        stage.run([cell for n, factor in factors.items() for cell in axes.row(n, factor)])
        card = _predicted(stage, config, axes, factors)
        written = folder.write_text("scale.json", card.model_dump_json(indent=1) + "\n")
        progress.say(f"written to {written}")
        return card


def _plan(stage: Stage, config: ScaleConfig, axes: Axes) -> str:
    cells = [c for n in axes.widths for c in (*axes.rates(n), *axes.row(n, 1.0))]
    cells = unique([*cells, *axes.rates(axes.next_n), *axes.row(axes.next_n, 1.0)])
    return "\n".join(
        [
            f"{axes.rule} at {short_name(stage.bench.network, stage.bench.site)} of {config.network}: {config.kind}, "
            f"{config.places:,} places each",
            f"  widths {', '.join(f'{n:,}' for n in axes.widths)}; k {', '.join(map(str, axes.ks))}",
            f"  learning rates: x {', '.join(f'{f:g}' for f in axes.factors)} at k = {axes.middle} and every width",
            f"  predicted, then trained: {axes.next_n:,} latents",
            f"about {len(cells)} runs, {in_words(stage.seconds(cells))} on this machine, as it is now",
        ]
    )


@dataclass(frozen=True)
class Row:
    """One width and k, mean over seeds: geometric for FVU, as the laws are."""

    n: int
    k: int
    factor: float
    l0: Draws
    fvu: Draws


def _rows(stage: Stage, axes: Axes, n: int, factor: float) -> list[Row]:
    """Every k at one width. Raises NonFiniteLoss for a cell that diverged: the grid would have a hole."""
    out = []
    for k in axes.ks:
        runs = [_figures(stage, cell) for cell in axes.row(n, factor) if cell.level == k]
        l0 = np.mean([r.l0 for r in runs], axis=0)
        out.append(Row(n, k, factor, l0, np.exp(np.mean([np.log(r.values["fvu"]) for r in runs], axis=0))))
    return out


def _figures(stage: Stage, cell: Cell) -> Drawn:
    """A cell under the rule it was trained with: thresholds are fitted after what the law is about."""
    found = stage.drawn([cell])
    if lost := stage.stopped([cell]):
        raise NonFiniteLoss(f"{lost[0]} Give lower --lr-factors.")
    return (found["trained"] or found["thresholds"])[0]


def _rate_at(stage: Stage, cells: Sequence[Cell]) -> tuple[BestRate, Draws | None]:
    """FVU by learning rate at one width, and the best rate; None where it is at the edge of those tried."""
    b = stage.bootstrap
    runs = [_figures(stage, cell) for cell in cells if not stage.stopped([cell])]
    fvu = {f"{r.cell.lr:.3g}": figure(r.values["fvu"], "fraction", b) for r in runs}
    losses = np.stack([r.values["fvu"] for r in runs], axis=1)
    best = best_rate(losses, np.array([r.cell.lr for r in runs]))
    edge = NotMeasured(not_measured="the best learning rate tried is the lowest or the highest")
    shown = edge if best is None else figure(best, "learning rate", b)
    return BestRate(n_latents=cells[0].n_latents, fvu=fvu, best=shown), best


def _predicted(stage: Stage, config: ScaleConfig, axes: Axes, factors: dict[int, float]) -> ScaleCard:
    """Fit both laws, train the next width at the learning rate they give, and put all on one card."""
    b = stage.bootstrap
    tried = [_rate_at(stage, axes.rates(n)) for n in axes.widths]
    slope, next_rate, factor, notes = _next_rate(stage, axes, [best for _, best in tried], factors[axes.widths[-1]])
    grid = [row for n, own in factors.items() for row in _rows(stage, axes, n, own)]
    law = joint_law(np.stack([r.fvu for r in grid], axis=1), *_axes(grid))
    others = axes.rates(axes.next_n, factor)
    stage.run([*axes.row(axes.next_n, factor), *others])
    ahead = _rows(stage, axes, axes.next_n, factor)
    foretold = law.predict(*_axes(ahead))
    there, _ = _rate_at(stage, others)
    everything = [*others, *(cell for n in axes.widths for cell in axes.rates(n))]
    network, left_out = stage.bench.network, np.abs(law.left_out)
    return ScaleCard(
        network=config.network, site=short_name(network, stage.bench.site), kind=config.kind, rule=axes.rule,
        data=described(network, config.data), places=config.places, sequences=len(stage.judging.judged),
        units=b.n_units, seeds=config.seeds,
        grid=[_cost(row, law.left_out[:, i], b) for i, row in enumerate(grid)], middle=law.middle,
        law={name: figure(law.coefficients[:, i], "", b) for i, name in enumerate(NAMES)},
        left_out=figure(left_out.max(axis=1), "fraction", b), rates=[*(shown for shown, _ in tried), there],
        rate_slope=slope, next_rate=next_rate, next_rate_measured=there.best,
        predictions=[_prediction(row, foretold[:, i], b) for i, row in enumerate(ahead)],
        notes=[*notes, *(f"stopped: {line}" for line in stage.stopped(everything))],
    )  # fmt: skip


def _next_rate(
    stage: Stage, axes: Axes, best: Sequence[Draws | None], widest: float
) -> tuple[Metric, Metric, float, list[str]]:
    """The exponent of n, the rate it gives the next width, that as a factor on the recipe's, and what to note."""
    known = [rate for rate in best if rate is not None]
    if len(known) < len(best):
        at_edge = [f"{n:,}" for n, rate in zip(axes.widths, best, strict=True) if rate is None]
        why = NotMeasured(not_measured=f"at {', '.join(at_edge)} latents the best rate is the lowest or highest tried")
        return why, why, widest, [f"the next width is trained at the recipe's rate x {widest:g}, the widest's best"]
    law = rate_law(np.stack(known, axis=1), np.array(axes.widths, float))
    rate = law.predict(axes.next_n)
    factor = float(f"{rate[0] / default_lr(axes.next_n):.3g}")
    b = stage.bootstrap
    return figure(law.slope, "exponent", b), figure(rate, "learning rate", b), factor, []


def _axes(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Measured L0 and width of each row."""
    return np.array([r.l0[0] for r in rows]), np.array([r.n for r in rows], float)


def _cost(row: Row, left_out: Draws, b: Bootstrap) -> Cost:
    l0, fvu = figure(row.l0, "latents", b), figure(row.fvu, "fraction", b)
    lr = row.factor * default_lr(row.n)
    return Cost(n_latents=row.n, k=row.k, lr=lr, l0=l0, fvu=fvu, left_out=figure(left_out, "fraction", b))


def _prediction(row: Row, foretold: Draws, b: Bootstrap) -> Prediction:
    return Prediction(
        n_latents=row.n, k=row.k, lr=row.factor * default_lr(row.n), l0=figure(row.l0, "latents", b),
        predicted=figure(foretold, "fraction", b), measured=figure(row.fvu, "fraction", b),
        off=figure(row.fvu / foretold - 1, "fraction", b),
    )  # fmt: skip
