"""Latents: what a dictionary finds at each place, kept sparse and ragged, and the pre-activations it was chosen from.

Shapes: `shape` are the places (e.g. [batch, pos]); R = their product (rows); L = n_latents; Z = number of kept
occurrences. No tensor of shape [R, k, d] is ever built, and a dense [R, L] one only in chunks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.candidates import above_of_candidates, largest_of_candidates
from understudy.core.narrow import Bits
from understudy.core.pattern import Decode, Pattern, Sampled
from understudy.core.records.errors import TooLarge, WrongShape
from understudy.core.top import above, largest

CHUNK_BYTES = 1 << 27
"""Largest dense temporary: 128 MiB."""


@dataclass(frozen=True)
class Latents:
    """Sparse values of a dictionary's latents at the places of a batch. Absent means 0; values may be signed."""

    values: Float[Tensor, " Z"]
    pattern: Pattern
    shape: tuple[int, ...]
    """Places, e.g. (batch, pos); their product is the number of rows."""
    gate: Float[Tensor, " Z"] | None = None
    """For gated kinds (parameter components): the share in [0, 1] of each occurrence that is let through."""

    def __post_init__(self) -> None:
        if prod(self.shape) != len(self.pattern.offsets) - 1:
            raise WrongShape(f"{len(self.pattern.offsets) - 1} rows do not fill the places {self.shape}.")

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "*places L"]) -> "Latents":
        """Keep the nonzero entries."""
        flat = dense.reshape(-1, dense.shape[-1])
        row, ids = flat.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(flat))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(flat[row, ids], Pattern(ids, offsets, flat.shape[1]), tuple(dense.shape[:-1]))

    @classmethod
    def none(cls, shape: tuple[int, ...], like: Tensor, n_latents: int = 0) -> "Latents":
        """No latent anywhere: what rivals without latents return."""
        empty = torch.zeros(0, dtype=torch.long, device=like.device)
        offsets = torch.zeros(prod(shape) + 1, dtype=torch.long, device=like.device)
        return cls(like.new_zeros(0), Pattern(empty, offsets, n_latents), tuple(shape))

    @property
    def ids(self) -> Tensor:
        return self.pattern.ids

    @property
    def offsets(self) -> Tensor:
        return self.pattern.offsets

    @property
    def n_latents(self) -> int:
        return self.pattern.n_latents

    @property
    def rows(self) -> Tensor:
        """The flat place of each occurrence."""
        return self.pattern.rows

    def with_values(self, values: Float[Tensor, " Z"]) -> "Latents":
        return replace(self, values=values)

    def decode(self, W: Float[Tensor, "L d"]) -> Float[Tensor, "*places d"]:
        """Sum of kept values times the rows of W, with gradients for both."""
        out = Decode.apply(self.values, W, self.pattern)
        return out.reshape(*self.shape, W.shape[1])  # pyright: ignore[reportOptionalMemberAccess]

    def keep(self, mask: Bool[Tensor, " L"] | Bool[Tensor, " Z"], *, by: str = "latent") -> "Latents":
        """Drop latents (`by="latent"`, mask [n_latents]) or single occurrences (`by="occurrence"`, mask [Z])."""
        kept = mask[self.ids] if by == "latent" else mask
        counts = torch.zeros(len(self.offsets) - 1, dtype=torch.long, device=kept.device)
        counts.index_add_(0, self.rows[kept], torch.ones_like(self.rows[kept]))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        gate = None if self.gate is None else self.gate[kept]
        pattern = Pattern(self.ids[kept], offsets, self.n_latents)
        return Latents(self.values[kept], pattern, self.shape, gate)

    def put(self, row: Int[Tensor, " m"], ids: Int[Tensor, " m"], values: Float[Tensor, " m"]) -> "Latents":
        """Set latents at flat places, whether they were active or not. Later entries win.

        Of gated latents the entries that are set are let through whole, the others keep their gates.
        """
        key_old, key_new = self.rows * self.n_latents + self.ids, row * self.n_latents + ids
        untouched = ~torch.isin(key_old, key_new)
        keys = torch.cat([key_old[untouched], key_new])
        vals = torch.cat([self.values[untouched], values.to(self.values)])
        gate = None if self.gate is None else torch.cat([self.gate[untouched], torch.ones_like(values).to(self.gate)])
        order = torch.argsort(keys, stable=True)
        keys = keys[order]
        last = torch.ones_like(keys, dtype=torch.bool)
        last[:-1] = keys[1:] != keys[:-1]
        kept = order[last]
        return self._from_keys(keys[last], vals[kept], None if gate is None else gate[kept])

    def minus(self, other: "Latents") -> "Latents":
        """Sparse difference; entries that cancel exactly are dropped, so a no-op edit leaves nothing.

        The gate of an entry is that of these latents, or of the other's where these have none; ungated ones count as 1.
        """
        keys = torch.cat([self.rows * self.n_latents + self.ids, other.rows * self.n_latents + other.ids])
        unique, where = keys.unique(return_inverse=True)
        left, right = (torch.zeros(len(unique), dtype=z.values.dtype, device=keys.device) for z in (self, other))
        n = len(self.values)
        left = left.index_put((where[:n],), self.values, accumulate=True)
        right = right.index_put((where[n:],), other.values, accumulate=True)
        changed = left != right
        gate = None
        if self.gate is not None or other.gate is not None:
            gate = torch.ones_like(left)
            for z, at in ((other, where[n:]), (self, where[:n])):
                gate[at] = 1.0 if z.gate is None else z.gate.to(gate)
            gate = gate[changed]
        return self._from_keys(unique[changed], (left - right)[changed], gate)

    def _from_keys(self, keys: Tensor, values: Tensor, gate: Tensor | None) -> "Latents":
        row, ids = keys // self.n_latents, keys % self.n_latents
        counts = torch.bincount(row, minlength=len(self.offsets) - 1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Latents(values, Pattern(ids, offsets, self.n_latents), self.shape, gate)

    def dense(self, max_bytes: int = 1 << 30) -> Float[Tensor, "*places L"]:
        """All latents as one tensor. Raises TooLarge above `max_bytes`: decode, keep or restrict instead."""
        size = prod(self.shape) * self.n_latents * self.values.element_size()
        if size > max_bytes:
            raise TooLarge(
                f"dense latents {(*self.shape, self.n_latents)} need {size / 2**30:.1f} GiB, above the limit of "
                f"{max_bytes / 2**30:.1f} GiB. Use .decode, .keep or fewer places, or raise max_bytes."
            )
        out = self.values.new_zeros(prod(self.shape), self.n_latents)
        return out.index_put((self.rows, self.ids), self.values).reshape(*self.shape, self.n_latents)

    def l0(self) -> Int[Tensor, "*places"]:
        """Number of latents that are not 0 at each place."""
        active = (self.values != 0).long()
        counts = torch.zeros(prod(self.shape), dtype=torch.long, device=active.device)
        return counts.index_add_(0, self.rows, active).reshape(self.shape)

    def fires(self, mask: Bool[Tensor, "*places"] | None = None) -> Int[Tensor, " L"]:
        """At how many places (of those in `mask`) each latent is not 0."""
        active = self.values != 0
        if mask is not None:
            active = active & mask.reshape(-1)[self.rows]
        return torch.bincount(self.ids[active], minlength=self.n_latents)

    def __repr__(self) -> str:
        mean = self.l0().double().mean().item() if prod(self.shape) else 0.0
        return f"Latents(places={self.shape}, n_latents={self.n_latents}, mean l0={mean:.1f})"


@runtime_checkable
class Pre(Protocol):
    """Pre-activations, computed where asked for and never materialised whole."""

    shape: tuple[int, ...]
    n_latents: int

    def top(self, k: int, among: Int[Tensor, " m"] | None = None) -> Latents:
        """The k largest at each place, among all latents or some; values as they are, maybe negative."""
        ...

    def above(self, threshold: Float[Tensor, " L"] | float) -> Latents:
        """Those strictly above a threshold."""
        ...

    def at(self, z: Latents, known: Float[Tensor, " Z"] | None = None) -> Float[Tensor, " Z"]:
        """The pre-activations of the occurrences of z, with gradients; known: what they are, where that was found."""
        ...

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "r L"]]]:
        """Dense blocks of rows, without gradients."""
        ...

    def detached(self) -> "Pre":
        """The same without gradients to the input (weights keep theirs)."""
        ...


Search = Literal["fp32"] | Bits
"""How latents are found: from an fp32 product, or among candidates from one in few bits. The same latents every
way (`core/top.py`, `core/candidates.py`)."""


class LinearPre:
    """Pre-activations `x W^T + b` of a linear encoder. W has one row for each latent."""

    def __init__(
        self, x: Float[Tensor, "*places d"], W: Float[Tensor, "L d"], b: Float[Tensor, " L"], search: Search = "fp32"
    ) -> None:
        self.shape, self.n_latents = tuple(x.shape[:-1]), W.shape[0]
        self.x, self.W, self.b = x.reshape(-1, x.shape[-1]), W, b
        self.search: Search = search

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "r L"]]]:
        step = max(1, CHUNK_BYTES // (max(1, self.n_latents) * self.x.element_size()))
        for i in range(0, len(self.x), step):
            yield slice(i, i + step), torch.addmm(self.b, self.x[i : i + step], self.W.T)

    def top(self, k: int, among: Int[Tensor, " m"] | None = None) -> Latents:
        W, b = (self.W, self.b) if among is None else (self.W[among], self.b[among])
        k = min(k, W.shape[0])
        if len(self.x) == 0 or k == 0:
            return Latents.none(self.shape, self.x, self.n_latents)
        if self.search == "fp32" or among is not None:
            ids, known = largest(self.x, W, b, k)
        else:
            ids, known = largest_of_candidates(self.x, W, b, k, self.search)
        offsets = torch.arange(len(self.x) + 1, device=ids.device) * k
        return self._sampled(ids if among is None else among[ids], offsets, known)

    def above(self, threshold: Float[Tensor, " L"] | float) -> Latents:
        if len(self.x) == 0:
            return Latents.none(self.shape, self.x, self.n_latents)
        if self.search == "fp32" or self.x.element_size() < 4:
            found = above(self.chunks(), threshold)
        else:
            theta = torch.as_tensor(threshold, dtype=self.x.dtype, device=self.x.device).expand(self.n_latents)
            found = above_of_candidates(self.x, self.W, self.b, theta, self.search)
        return self._sampled(found.ids, torch.cat([found.counts.new_zeros(1), found.counts.cumsum(0)]), found.values)

    def _sampled(self, ids: Tensor, offsets: Tensor, known: Tensor) -> Latents:
        pattern = Pattern(ids, offsets, self.n_latents)
        return Latents(Sampled.apply(self.x, self.W, self.b, pattern, known), pattern, self.shape)  # pyright: ignore

    def at(self, z: Latents, known: Float[Tensor, " Z"] | None = None) -> Float[Tensor, " Z"]:
        return Sampled.apply(self.x, self.W, self.b, z.pattern, known)  # pyright: ignore[reportReturnType]

    def detached(self) -> "LinearPre":
        return LinearPre(self.x.detach().reshape(*self.shape, -1), self.W, self.b, self.search)


class Encoded(NamedTuple):
    """What encoding gives: the kept latents and the pre-activations they were chosen from."""

    z: Latents
    pre: Pre
