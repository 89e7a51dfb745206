"""Cells trained block by block and measured, those that are done left alone; and what they will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.core.records.artifact import RunFolder
from understudy.core.records.progress import Progress
from understudy.metrics import Bootstrap
from understudy.workflows._grid.bench import GridConfig
from understudy.workflows._grid.cells import Cell, unique
from understudy.workflows._grid.draws import Drawn, drawn
from understudy.workflows._grid.measure import FORMS, SELECTION, SUMS, Judging, Sums, measure, read_sums
from understudy.workflows._grid.together import STOPPED, Bench, blocks, keep, train_together
from understudy.workflows.evaluate import documents
from understudy.workflows.train import TrainConfig, start, starting_sample


@dataclass
class Stage:
    """The cells of one folder."""

    bench: Bench
    judging: Judging
    folder: RunFolder
    config: GridConfig
    progress: Progress

    def __post_init__(self) -> None:
        clusters = documents(self.judging.sequences, self.judging.judged)
        self.bootstrap = Bootstrap(len(self.judging.judged), self.config.seed, clusters=clusters)

    def train_config(self, cell: Cell) -> TrainConfig:
        return cell.config(self.config.base(), self.folder.path)

    def run(self, cells: Sequence[Cell]) -> None:
        """Train and measure what is not done yet. Cells are blocked before what is done is left out, so that those
        that were trained together go on together."""
        network = self.bench.network
        width = max(network.width(s) for s in self.bench.what.sites)
        for block in blocks([self.train_config(c) for c in unique(cells)], width, self.config.held_gb * 1e9):
            left = [c for c in block if not any((c.out / name).exists() for name in (SUMS, STOPPED))]
            if not left:
                continue
            made = train_together(self.bench, left, self.config.checkpoint_s, self.progress)
            for m, write_sums in measure(self.bench, made, self.judging, self.progress):
                keep(self.bench, m, write_sums)

    def selection_loss(self, cell: Cell) -> float | None:
        """What the cell's learning rate is chosen by; None for one that stopped."""
        folder = RunFolder(self.train_config(cell).out)
        return None if folder.file(STOPPED).exists() else float(folder.read_json(SELECTION)["loss"])

    def sums(self, cell: Cell) -> dict[str, Sums]:
        """By form; empty for a cell that stopped."""
        folder = self.train_config(cell).out
        return {} if (folder / STOPPED).exists() else read_sums(folder, str(self.bench.site))

    def drawn(self, cells: Sequence[Cell]) -> dict[str, list[Drawn]]:
        """Every cell's figures on the same resamples, by form."""
        out: dict[str, list[Drawn]] = {form: [] for form in FORMS}
        for cell in cells:
            for form, sums in self.sums(cell).items():
                out[form].append(drawn(cell, sums, self.bootstrap))
        return out

    def stopped(self, cells: Sequence[Cell]) -> list[str]:
        """A line for each cell without figures."""
        found = [RunFolder(self.train_config(c).out) for c in unique(cells)]
        return [f"{f.path.name}: {f.read_json(STOPPED)['why']}" for f in found if f.file(STOPPED).exists()]

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Roughly what the cells take here: a step of each rule and width is timed, and so is a pass of the network."""
        configs = [self.train_config(c) for c in unique(cells)]
        harvest = self.bench.harvest(configs[0].seed)
        began = time.monotonic()
        sample = starting_sample(harvest)
        per_place = (time.monotonic() - began) / max(1, harvest.n_rows)
        rows = {s: v[: self.config.batch] for s, v in harvest.chunk(0).items()}
        took: dict[tuple[str, int], float] = {}
        for c in configs:
            if (c.sparsity, c.n_latents) not in took:
                trainer = start(c, self.bench.network, sample, self.bench.what)
                trainer.train_step(rows)
                began = time.monotonic()
                trainer.train_step(rows)
                took[c.sparsity, c.n_latents] = time.monotonic() - began
        steps = self.config.places / self.config.batch
        training = steps * sum(took[c.sparsity, c.n_latents] for c in configs)
        passes = len({c.seed for c in configs}) * self.config.places
        places = harvest.n_rows // harvest.chunk_sequences * len(self.judging.judged)
        return training + per_place * (passes + 4 * places * len(configs))


def in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
