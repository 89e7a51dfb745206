"""Written: what each source wrote at one slot, laid out so that one product per place gives all its edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ERROR, BIAS, FIRST = 0, 1, 2
"""Of the vectors at each place: the error, the biases, then latents."""
COMMON = 0.95
"""Share of places whose latents fit into the padded block; what the few crowded ones have beyond it lies apart."""


@dataclass(frozen=True)
class Written:
    """Vectors that were written at the places of one slot, and the columns of a row that they belong to."""

    parts: Float[Tensor, "p k d"]
    """Error, biases and latents of each place, padded with zeros."""
    at: Int[Tensor, " m"]
    """Where in the flattened [p, k] each latent lies, ordered by place."""
    columns: Int[Tensor, " m"]
    before: Int[Tensor, " p_plus_1"]
    """How many of `at` lie before each place."""
    crowded: Sequence[tuple[int, Float[Tensor, "x d"], Int[Tensor, " x"]]]
    """Place, vectors and columns of latents beyond the block."""

    @classmethod
    def of(
        cls,
        error: Float[Tensor, "p d"],
        bias: Float[Tensor, "p d"],
        places: Int[Tensor, " z"],
        columns: Int[Tensor, " z"],
        vectors: Float[Tensor, "z d"],
    ) -> "Written":
        """places, columns, vectors: of each latent that is on."""
        p, d = error.shape
        order = torch.argsort(places, stable=True)
        places, columns, vectors = places[order], columns[order], vectors[order]
        counts = torch.bincount(places, minlength=p)
        number = torch.arange(len(places)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        most = int(counts.float().quantile(COMMON, interpolation="lower")) if p else 0
        inside = number < most
        k = FIRST + most
        parts = vectors.new_zeros(p * k, d)
        parts[ERROR::k], parts[BIAS::k] = error.to(parts), bias.to(parts)
        at = places[inside] * k + FIRST + number[inside]
        parts[at] = vectors[inside]
        held = torch.bincount(places[inside], minlength=p)
        crowded = [(x, vectors[own], columns[own]) for x, own in _by_place(places, ~inside)]
        before = torch.cat([held.new_zeros(1), held.cumsum(0)])
        return cls(parts.reshape(p, k, d), at, columns[inside], before, crowded)

    def edges(self, grad: Float[Tensor, "b n d"], out: Float[Tensor, "b columns"], error: slice, bias: int) -> None:
        """Add grad . vector to the columns of `out`, at the first n places. error: columns of the errors at places."""
        b, n, _ = grad.shape
        k = self.parts.shape[1]
        found = torch.bmm(grad.transpose(0, 1), self.parts[:n].transpose(1, 2)).transpose(0, 1).reshape(b, n * k)
        out[:, error.start : error.start + n] += found[:, ERROR::k]
        out[:, bias] += found[:, BIAS::k].sum(1)
        m = int(self.before[n])
        if m:
            out.index_add_(1, self.columns[:m], found.index_select(1, self.at[:m]))
        for place, vectors, columns in self.crowded:
            if place < n:
                out.index_add_(1, columns, grad[:, place] @ vectors.T)


def _by_place(places: Tensor, beyond: Tensor) -> list[tuple[int, Tensor]]:
    """Each place with latents beyond the block, and which those are."""
    index = beyond.nonzero().squeeze(-1)
    if not len(index):
        return []
    found, counts = places[index].unique_consecutive(return_counts=True)
    return list(zip(found.tolist(), index.split(counts.tolist()), strict=True))
