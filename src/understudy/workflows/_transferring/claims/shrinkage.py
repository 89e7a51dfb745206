"""JumpReLU removes the shrinkage that ReLU under an L1 penalty has. Rajamanoharan et al. 2024, arXiv:2407.14435."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Group
from understudy.metrics import Bootstrap
from understudy.metrics.shrinkage import NAMES, Shrinkage, refit, shrinkage
from understudy.workflows._grid.draws import Draws
from understudy.workflows._grid.together import FIT_CHUNK, Bench
from understudy.workflows._transferring.claim import Arm, Claim, Counter, Seen, Tally

FIT_ROWS = 1 << 15
"""Training rows on which lengths of atoms are fitted for the control."""
REFIT = "refit."
"""Before the names of the control's sums."""


@dataclass(frozen=True)
class FitBench(Bench):
    """A bench with rows to fit on after training."""

    seed: int = field(kw_only=True)

    @cached_property
    def fit(self) -> Float[Tensor, "rows d"]:
        """Training rows, in an order that no step saw; harvested once for all dictionaries."""
        harvest, parts = self.harvest(self.seed), []
        while sum(map(len, parts)) < FIT_ROWS:
            parts += [rows.clone() for rows in harvest.chunk(FIT_CHUNK + len(parts)).values()]
        return torch.cat(parts)[:FIT_ROWS]


class JumpReLURemovesShrinkage(Claim):
    name = "shrinkage"
    sentence = "JumpReLU removes the shrinkage that ReLU under an L1 penalty has."
    defect = "shrinkage"
    definition = (
        "1 - Var(x_hat) / Cov(x, x_hat), traces over held-out places: the share by which what is written back falls "
        "short of the scale that fits best; 0 is none"
    )
    unit = "fraction"
    source = "Rajamanoharan et al. 2024, arXiv:2404.16014 (eq. 10) and arXiv:2407.14435"
    control = (
        "the same of the dictionary's own latents and atoms with lengths that are fitted to training places by least "
        "squares, which write neither too little nor too much, however badly they fit"
    )
    least = 0.01
    arms = (Arm("relu", "relu"), Arm("jumprelu", "jumprelu"), Arm("topk", "topk"))

    def bench(self, bench: Bench, seed: int) -> FitBench:
        return FitBench(bench.network, bench.what, bench.train, seed=seed)

    def counter(self, bench: Bench, group: Group, n_sequences: int) -> Counter:
        assert isinstance(bench, FitBench)
        return _Counter(bench, group, n_sequences)

    def defects(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws]:
        return [shrinkage(bootstrap.sums(**{k: t[k] for k in NAMES})) for t in tallies]

    def controls(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws]:
        return [shrinkage(bootstrap.sums(**{k: t[REFIT + k] for k in NAMES})) for t in tallies]


class _Counter(Counter):
    """What a dictionary writes, and what it writes with atoms of fitted lengths."""

    def __init__(self, bench: FitBench, group: Group, n_sequences: int) -> None:
        (site,) = group.writes
        (member,) = group.members
        atoms = member.atoms(torch.arange(member.n_latents, device=bench.fit.device))[site]
        self.atoms, self.bias = refit(member.encode({site: bench.fit}).z, atoms, bench.fit)
        around = bench.fit.mean(0)
        self.written, self.refitted = Shrinkage(n_sequences, around), Shrinkage(n_sequences, around)

    def update(self, seen: Seen) -> None:
        self.written.update(seen.x, seen.hat, seen.sequences)
        again = seen.z.decode(self.atoms.to(seen.x)) + self.bias.to(seen.x)
        self.refitted.update(seen.x, again, seen.sequences)

    def sums(self) -> Tally:
        return self.written.sums | {REFIT + k: v for k, v in self.refitted.sums.items()}
