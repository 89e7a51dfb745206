"""One claim on one network: its arms trained, counted on held-out places, and what is done left alone."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from understudy.core.records.artifact import RunFolder
from understudy.core.records.progress import Progress
from understudy.core.weights import load_tensors, save_tensors
from understudy.metrics import Bootstrap
from understudy.workflows._grid.cells import takes_k
from understudy.workflows._grid.draws import Drawn
from understudy.workflows._grid.measure import SUMS, Judging
from understudy.workflows._grid.together import STOPPED, Bench, Made, blocks, keep, train_together
from understudy.workflows._training.decided import decided
from understudy.workflows._transferring.claim import Arm, Claim, Seen, Tally
from understudy.workflows._transferring.levels import cell, first_levels, more_levels
from understudy.workflows.evaluate import documents
from understudy.workflows.train import TrainConfig, check_config

AT_ONCE = 8
"""Sequences in one pass."""
ROUNDS = 6
"""How often levels are added for an L0 that no run has reached."""
CLAIM = "claim."
"""Before the names of what the claim counts, in the file of a run's sums."""


@dataclass(frozen=True)
class Try:
    """One run of an arm."""

    arm: Arm
    level: float
    """k, or the weight of the penalty."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{re.sub(r'[^a-zA-Z0-9_]+', '-', self.arm.name)}-{self.level:g}-seed{self.seed}"

    def config(self, base: TrainConfig, folder: Path) -> TrainConfig:
        """Raises BadInput, UnknownName for what does not fit."""
        level = {"k": int(self.level)} if takes_k(self.arm.sparsity) else {"l1": self.level, "k": 1}
        own = {
            "sparsity": self.arm.sparsity,
            "seed": self.seed,
            "out": folder / self.name,
            **level,
            **dict(self.arm.options),
        }
        made = decided(base.model_copy(update=own))
        check_config(made)
        return made


@dataclass
class Trial:
    """The runs of one folder."""

    claim: Claim
    plain: Bench
    judging: Judging
    folder: RunFolder
    base: TrainConfig
    """What every run shares."""
    l0: float
    seeds: Sequence[int]
    held_bytes: float
    checkpoint_s: float
    progress: Progress
    _benches: dict[int, Bench] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clusters = documents(self.judging.sequences, self.judging.judged)
        self.bootstrap = Bootstrap(len(self.judging.judged), self.base.seed, clusters=clusters)

    def bench(self, seed: int) -> Bench:
        if seed not in self._benches:
            self._benches[seed] = self.claim.bench(self.plain, seed)
        return self._benches[seed]

    def first(self) -> list[Try]:
        width, n = self.plain.network.width(self.plain.site), self.base.n_latents
        return [
            Try(arm, level, seed)
            for seed in self.seeds
            for arm in self.claim.arms
            for level in first_levels(arm.sparsity, n, width, self.l0)
        ]

    def complete(self) -> list[Try]:
        """Run the arms, and more levels of those that do not reach the L0; returns all tries."""
        tries = self.first()
        for _ in range(ROUNDS):
            self._run(tries)
            more = list(tries)
            for (arm, seed), own in grouped(tries).items():
                runs = [self.reached(t) for t in self.ended(own)]
                more += [Try(arm, level, seed) for level in more_levels(runs, self.l0)]
            if len(more := list(dict.fromkeys(more))) == len(tries):
                return tries
            tries = more
        self._run(tries)
        return tries

    def ended(self, tries: Sequence[Try]) -> list[Try]:
        """Those whose loss stayed a number."""
        return [t for t in tries if not self._stopped(t)]

    def reached(self, t: Try) -> Drawn:
        """The L0 of a run, under thresholds as it is used, in every resample."""
        sums = self._sums(t)
        l0 = self.bootstrap.draws(lambda active, n: active / n, active=sums["active"], n=sums["n"])
        return Drawn(cell(t.arm.sparsity, t.level, self.base.n_latents, t.seed), l0, {})

    def tally(self, t: Try) -> Tally:
        """What the claim counted."""
        return {k.removeprefix(CLAIM): v for k, v in self._sums(t).items() if k.startswith(CLAIM)}

    def stopped(self, tries: Sequence[Try]) -> list[str]:
        """A line for each run whose loss became no number."""
        return [f"{t.name}: {self._run_folder(t).read_json(STOPPED)['why']}" for t in tries if self._stopped(t)]

    # -- one run ------------------------------------------------------------------------------------------------------

    def _run_folder(self, t: Try) -> RunFolder:
        return RunFolder(self.folder.file(t.name))

    def _stopped(self, t: Try) -> bool:
        return self._run_folder(t).file(STOPPED).exists()

    def _sums(self, t: Try) -> Tally:
        return {k: v.numpy() for k, v in load_tensors(self._run_folder(t).file(SUMS)).items()}

    def _run(self, tries: Sequence[Try]) -> None:
        """Train and count what is not done yet; those of a seed that were trained together go on together."""
        width = self.plain.network.width(self.plain.site)
        configs = [t.config(self.base, self.folder.path) for t in tries]
        for block in blocks(configs, width, self.held_bytes):
            left = [c for c in block if not any((c.out / name).exists() for name in (SUMS, STOPPED))]
            if not left:
                continue
            bench = self.bench(left[0].seed)
            made = train_together(bench, left, self.checkpoint_s, self.progress)
            for m, tally in zip(made, self._count(bench, made), strict=True):
                keep(bench, m, partial(_write, RunFolder(m.config.out), tally))

    @torch.no_grad()
    def _count(self, bench: Bench, made: Sequence[Made]) -> list[Tally]:
        """Sums of the claim, and latents on, for each dictionary over the judged places."""
        n, site = len(self.judging.judged), bench.site
        counters = [self.claim.counter(bench, m.final, n) for m in made]
        active, places = np.zeros((len(made), n)), np.zeros(n)
        with self.progress.task(f"counting {self.claim.name}", n, "sequences") as task:
            for number, (rows, sequences) in enumerate(self._places(bench)):
                x = self.claim.given(bench, rows, number)
                at = sequences.cpu().numpy()
                np.add.at(places, at, 1.0)
                for i, (m, counter) in enumerate(zip(made, counters, strict=True)):
                    encoded = m.final.encode({site: x})
                    hat = m.final.write([e.z for e in encoded], {site: x})[site]
                    (z,) = (e.z for e in encoded)
                    np.add.at(active[i], at, z.l0().double().cpu().numpy())
                    counter.update(Seen(x, hat, z, sequences, number))
                task.update(min(n, (number // self.claim.passes + 1) * AT_ONCE))
        return [
            {"active": own, "n": places, **{f"{CLAIM}{k}": v for k, v in counter.sums().items()}}
            for own, counter in zip(active, counters, strict=True)
        ]

    def _places(self, bench: Bench) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows that count [rows, d], and the index of each one's sequence; as often as the claim goes over them."""
        judged, site = self.judging.judged, bench.site
        for i in range(0, len(judged), AT_ONCE):
            batch = self.judging.sequences.batch(judged[i : i + AT_ONCE]).to(bench.network.device)
            acts = bench.network.record(batch, [site])[site].float()
            sequences = torch.arange(i, i + len(acts), device=acts.device)
            sequences = sequences.reshape(-1, *[1] * (acts.dim() - 2)).expand(acts.shape[:-1])
            counts = torch.ones_like(sequences, dtype=torch.bool) if batch.mask is None else batch.mask
            rows, at = acts[counts], sequences[counts]
            yield from ((rows, at) for _ in range(self.claim.passes))


def _write(folder: RunFolder, tally: Tally) -> None:
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tally.items()}
    folder.write(SUMS, lambda path: save_tensors(path, tensors))


def grouped(tries: Sequence[Try]) -> dict[tuple[Arm, int], list[Try]]:
    """By arm and seed."""
    out: dict[tuple[Arm, int], list[Try]] = {}
    for t in tries:
        out.setdefault((t.arm, t.seed), []).append(t)
    return out
