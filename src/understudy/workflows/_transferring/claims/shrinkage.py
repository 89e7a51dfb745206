"""JumpReLU removes the shrinkage that ReLU under an L1 penalty has. Rajamanoharan et al. 2024, arXiv:2407.14435."""

from collections.abc import Sequence

import numpy as np

from understudy.core.dictionary import Group
from understudy.metrics import Bootstrap
from understudy.metrics.shrinkage import Shrinkage, shrinkage
from understudy.workflows._grid.draws import Draws
from understudy.workflows._grid.together import Bench
from understudy.workflows._transferring.claim import Arm, Claim, Counter, Seen, Tally


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
        "the same after dividing what is written back by the scale of the other half of the sequences: nothing may be "
        "left"
    )
    least = 0.01
    arms = (Arm("relu", "relu"), Arm("jumprelu", "jumprelu"), Arm("topk", "topk"))

    def counter(self, bench: Bench, group: Group, n_sequences: int) -> Counter:
        return _Counter(n_sequences)

    def defects(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws]:
        return [shrinkage(bootstrap.sums(**tally)) for tally in tallies]

    def controls(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws]:
        """1 - scale of one half over scale of the other; halves are every second sequence."""
        out = []
        for tally in tallies:
            halves = [{name: _every_second(value, start) for name, value in tally.items()} for start in (0, 1)]
            ours, other = (1 - shrinkage(bootstrap.sums(**half)) for half in halves)
            out.append(1 - ours / other)
        return out


def _every_second(value: np.ndarray, start: int) -> np.ndarray:
    kept = np.zeros_like(value)
    kept[start::2] = value[start::2]
    return kept


class _Counter(Counter):
    """Around the mean of the first places that are seen, the same for every dictionary."""

    def __init__(self, n_sequences: int) -> None:
        self.n_sequences = n_sequences
        self.counted: Shrinkage | None = None

    def update(self, seen: Seen) -> None:
        if self.counted is None:
            self.counted = Shrinkage(self.n_sequences, seen.x.mean(0))
        self.counted.update(seen.x, seen.hat, seen.sequences)

    def sums(self) -> Tally:
        assert self.counted is not None
        return self.counted.sums
