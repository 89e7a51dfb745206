"""Sparsity: how many latents fire at a place, how often each fires, and how many never do."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape
from understudy.core.records.metric import Metric, NotMeasured, exact

_COLUMNS = 256


class Dead(NamedTuple):
    """Latents silent over the whole evaluation set, and what that does and does not say."""

    share: Metric
    """Share of latents with no firing at any of the T places; n = T. Exact for this set, so it has no interval."""
    resolution: float
    """3 / T: a silent latent's true density may still be this high (95%, one latent, places independent)."""
    seen_once: Metric
    """Share of latents that fired at exactly one place. If not far below `share`, more text would wake many."""


class DensityHistogram(NamedTuple):
    """Latents by log10 of the share of places at which they fire."""

    edges: Float[np.ndarray, " bin_edges"]
    counts: Int[np.ndarray, " bins"]
    n_silent: int
    """Latents with no firing, which have no logarithm."""


class Sparsity:
    """Counts over the real places of one dictionary's latents. A latent fires where its value is not 0.

    Keeps the number of firing latents of every place (8 bytes each) and the firings of every latent. Order and size of
    batches change nothing, and shards add up.
    """

    def __init__(self, n_sequences: int, n_latents: int) -> None:
        self.n_sequences, self.n_latents = n_sequences, n_latents
        self.fires = np.zeros(n_latents, np.int64)
        """At how many places each latent fires."""
        self._l0: list[np.ndarray] = []
        self._sequence: list[np.ndarray] = []

    @torch.no_grad()
    def update(self, z: Latents, sequences: Int[Tensor, " b"], mask: Bool[Tensor, " b *places"] | None = None) -> None:
        """Add a batch of latents of shape [b, *places]; sequences: the index of each row, in 0..n_sequences-1."""
        fits = z.n_latents == self.n_latents and z.shape[0] == len(sequences)
        if not fits or (mask is not None and mask.shape != z.shape):
            raise WrongShape(
                f"Latents {z.shape} of {z.n_latents}, {len(sequences)} sequence indices and mask "
                f"{None if mask is None else tuple(mask.shape)} do not fit each other or {self.n_latents} latents."
            )
        l0 = z.l0().cpu().reshape(len(sequences), -1)
        real = torch.ones_like(l0, dtype=torch.bool) if mask is None else mask.cpu().reshape(l0.shape)
        row = sequences.cpu()[:, None].expand(l0.shape)
        self._l0.append(l0[real].numpy().astype(np.int32))
        self._sequence.append(row[real].numpy().astype(np.int32))
        self.fires += z.fires(mask).cpu().numpy()

    def merge(self, other: "Sparsity") -> "Sparsity":
        """The counts of both."""
        if (self.n_sequences, self.n_latents) != (other.n_sequences, other.n_latents):
            raise WrongShape("Cannot merge counts over different numbers of sequences or latents.")
        both = Sparsity(self.n_sequences, self.n_latents)
        both.fires = self.fires + other.fires
        both._l0, both._sequence = self._l0 + other._l0, self._sequence + other._sequence
        return both

    @property
    def n_places(self) -> int:
        """T, the real places seen."""
        return sum(map(len, self._l0))

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._l0:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        return np.concatenate(self._l0), np.concatenate(self._sequence)

    def by_sequence(self) -> tuple[Float[np.ndarray, " n_seq"], Int[np.ndarray, " n_seq"]]:
        """Firing latents of each sequence, summed over its real places, and those places."""
        l0, sequence = self._places()
        total = np.bincount(sequence, weights=l0, minlength=self.n_sequences)
        return total, np.bincount(sequence, minlength=self.n_sequences)

    def l0(self, bootstrap: Bootstrap) -> Metric:
        """Mean number of firing latents per place."""
        return bootstrap.ratio(*self.by_sequence(), "latents")

    def l0_quantile(self, q: float, bootstrap: Bootstrap) -> Metric:
        """The smallest number of firing latents that a share q of the places does not exceed: 0.5 median, 0.95 p95."""
        l0, sequence = self._places()
        if len(l0) == 0:
            return NotMeasured(not_measured="no real place was seen")
        values, column = np.unique(l0, return_inverse=True)
        below = []
        for i in range(0, len(values), _COLUMNS):
            width = min(_COLUMNS, len(values) - i)
            here = (column >= i) & (column < i + width)
            cells = sequence[here].astype(np.int64) * width + column[here] - i
            table = np.bincount(cells, minlength=self.n_sequences * width).reshape(self.n_sequences, width)
            below.append(bootstrap.sums(table=table)["table"])
        reached = np.concatenate(below, axis=1).cumsum(1)
        draws = values[(reached < q * reached[:, -1:] - 1e-9).sum(1).clip(max=len(values) - 1)].astype(np.float64)
        draws[reached[:, -1] == 0] = np.nan
        return bootstrap.summarise(draws, "latents", bootstrap.units(np.bincount(sequence, minlength=self.n_sequences)))

    def density(self) -> Float[np.ndarray, " n_latents"]:
        """Share of places at which each latent fires; all 0 if no place was seen."""
        return self.fires / max(1, self.n_places)

    def dead(self) -> Dead | NotMeasured:
        """Latents silent over the whole evaluation set.

        The share is a count about this set, and an interval by resampling would be wrong: a resample holds fewer
        distinct places, so it only ever has more silent latents. What a larger set would say is bounded instead by
        `resolution` and by `seen_once`.
        """
        if self.n_places == 0 or self.n_latents == 0:
            return NotMeasured(not_measured=f"{self.n_latents} latents were seen at {self.n_places} places")

        def share(count: int) -> Metric:
            return exact(int((self.fires == count).sum()) / self.n_latents, "fraction", self.n_places)

        return Dead(share(0), 3 / self.n_places, share(1))

    def density_histogram(self, per_decade: int = 4) -> DensityHistogram:
        """Latents by log10 density, in equal bins from at most 1 / T up to 1 (the last bin includes 1)."""
        decades = int(np.ceil(np.log10(max(10, self.n_places))))
        edges = np.linspace(-decades, 0, decades * per_decade + 1)
        alive = self.density()[self.fires > 0]
        counts, _ = np.histogram(np.log10(alive), edges)
        return DensityHistogram(edges, counts, int((self.fires == 0).sum()))
