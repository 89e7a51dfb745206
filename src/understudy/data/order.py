"""Order: which items come when, as a pure function of a seed and a position, so that a run resumes exactly."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from understudy.core.records.errors import BadData


@dataclass(frozen=True)
class Order:
    """An endless stream of the indices 0..n-1: one new permutation per epoch, keyed by (seed, epoch).

    Nothing is carried from one draw to the next. The batch size says only how many indices are taken at a time;
    the stream underneath is the same for every batch size, and a batch may reach across the end of an epoch.
    """

    n: int
    seed: int = 0
    """Not negative."""
    _cached: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadData(f"There is nothing to put in order: n={self.n} items.")

    def stream(self, start: int, stop: int) -> Int[Tensor, " n_indices"]:
        """Indices at positions start..stop-1 of the stream; position p lies in epoch p // n."""
        if not 0 <= start <= stop:
            raise BadData(f"A stream runs forward from position 0; asked for {start} to {stop}.")
        pieces = [
            self._permutation(epoch)[max(start - epoch * self.n, 0) : stop - epoch * self.n]
            for epoch in range(start // self.n, -(-stop // self.n))
        ]
        return torch.from_numpy(np.concatenate(pieces) if pieces else np.empty(0, np.int64))

    def batch(self, step: int, batch_size: int) -> Int[Tensor, " batch_size"]:
        """Indices of the batch of number `step`, counted from 0."""
        return self.stream(step * batch_size, (step + 1) * batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._cached:
            if len(self._cached) > 1:
                self._cached.clear()
            # sorting raw bits, because numpy promises the same raw bits in every version but not the same shuffle
            bits = np.random.Philox(key=[self.seed, epoch]).random_raw(self.n)
            self._cached[epoch] = np.argsort(bits, kind="stable")
        return self._cached[epoch]
