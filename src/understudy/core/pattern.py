"""Which latents are kept at which places, and the sparse products over them, with complete gradients.

R rows, L latents, Z kept occurrences. No tensor of shape [R, k, d] is built, and a dense [R, L] one only in chunks.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 1 << 27
"""Largest temporary of a sparse product: 128 MiB."""
DENSE_SHARE = 64
"""A pair whose rows are copied costs about this many entries of a dense product (CPU, d = 192)."""
FUSED_SHARE = 8
"""The same of a pair whose rows are multiplied where they lie."""


@dataclass(frozen=True)
class Pattern:
    """Which latents are kept at which rows: row r holds `ids[offsets[r]:offsets[r+1]]` (CSR)."""

    ids: Int[Tensor, " Z"]
    offsets: Int[Tensor, " R_plus_1"]
    n_latents: int

    @cached_property
    def rows(self) -> Int[Tensor, " Z"]:
        """The row of each occurrence."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=self.ids.device), counts)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same pattern seen from the latents: (order of occurrences, their rows, offsets per latent)."""
        order = _stable_order(self.ids, self.n_latents)
        counts = torch.bincount(self.ids, minlength=self.n_latents)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return order, self.rows[order], offsets

    def gather_sum(self, values: Float[Tensor, " Z"], table: Float[Tensor, "L d"]) -> Float[Tensor, "R d"]:
        """Row r = sum of values times the table rows of its latents."""
        return _bag(self.ids, table, self.offsets, values)

    def scatter_sum(self, values: Float[Tensor, " Z"], table: Float[Tensor, "R d"]) -> Float[Tensor, "L d"]:
        """Latent i = sum of values times the table rows of the places where it is kept: `gather_sum` transposed."""
        order, rows, offsets = self.by_latent
        return _bag(rows, table, offsets, values[order])

    def dot(self, left: Float[Tensor, "R d"], right: Float[Tensor, "L d"]) -> Float[Tensor, " Z"]:
        """left[row] . right[id] for each occurrence."""
        if len(self.ids) == 0:
            return left.new_zeros(0)
        if (kernels := kernels_for(left)) is not None and left.dtype == right.dtype:
            return kernels.dot(self.ids, self.offsets, left, right)
        fused = left.device.type == "cpu" and left.dtype == right.dtype and left.dtype in (torch.float32, torch.float64)
        if len(self.ids) * (FUSED_SHARE if fused else DENSE_SHARE) >= len(left) * len(right):
            return _dot_dense(self, left, right)
        return _dot_fused(self, left, right) if fused else _dot_gathered(self, left, right)


def _dot_fused(p: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """Rows are multiplied where they lie: no copy of them is made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        into = torch.sparse_csr_tensor(
            p.offsets, p.ids, left.new_zeros(len(p.ids)), (len(left), len(right)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(into, left, right.T, beta=0.0).values()


def _dot_dense(p: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """A dense product, some rows at a time: the best where many pairs are wanted and rows would be copied."""
    step = max(1, CHUNK_BYTES // (left.element_size() * max(1, len(right))))
    parts = []
    for i in range(0, len(left), step):
        z = slice(int(p.offsets[i]), int(p.offsets[min(i + step, len(left))]))
        parts.append((left[i : i + step] @ right.T).view(-1).take((p.rows[z] - i) * len(right) + p.ids[z]))
    return torch.cat(parts)


def _dot_gathered(p: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """Copies of the rows of some pairs at a time."""
    step = max(1, CHUNK_BYTES // (left.element_size() * max(1, left.shape[1]) * 2))
    pairs = zip(p.rows.split(step), p.ids.split(step), strict=True)
    return torch.cat([(left[row] * right[ids]).sum(-1) for row, ids in pairs])


def _stable_order(ids: Tensor, n: int) -> Tensor:
    """argsort(ids, stable): on a CPU by radix on 16 bits where they fit, 20 x faster than a comparison sort."""
    if ids.device.type == "cpu" and n <= 1 << 16:
        return torch.from_numpy(np.argsort(ids.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(ids, stable=True)


def kernels_for(like: Tensor) -> ModuleType | None:
    """The Triton kernels (`core/kernels.py`) where they serve: on a GPU, at fp32 or less, where triton is installed."""
    if like.device.type != "cuda" or like.dtype == torch.float64 or find_spec("triton") is None:
        return None
    from understudy.core import kernels

    return kernels


def _bag(ids: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    if len(ids) == 0:
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    if (kernels := kernels_for(table)) is not None:
        return kernels.bag(ids, table, offsets, weights)
    return F.embedding_bag(
        ids, table, offsets, mode="sum", per_sample_weights=weights.to(table.dtype), include_last_offset=True
    )


class Decode(torch.autograd.Function):
    """values, W -> sum over kept latents; complete gradients for both."""

    @staticmethod
    def forward(ctx, values, W, pattern):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(values, W)
        ctx.pattern = pattern
        return pattern.gather_sum(values, W)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W = ctx.saved_tensors
        grad = grad.contiguous()
        d_values = ctx.pattern.dot(grad, W) if ctx.needs_input_grad[0] else None
        d_W = ctx.pattern.scatter_sum(values, grad) if ctx.needs_input_grad[1] else None
        return d_values, d_W, None


class Sampled(torch.autograd.Function):
    """x, W, b -> x[row] . W[id] + b[id] at the kept pairs; complete gradients for all three."""

    @staticmethod
    def forward(ctx, x, W, b, pattern, known):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, W)
        ctx.pattern = pattern
        return pattern.dot(x, W) + b[pattern.ids] if known is None else known.clone()

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W = ctx.saved_tensors
        p: Pattern = ctx.pattern
        d_x = p.gather_sum(grad, W) if ctx.needs_input_grad[0] else None
        d_W = p.scatter_sum(grad, x) if ctx.needs_input_grad[1] else None
        d_b = _by_latent(p, grad) if ctx.needs_input_grad[2] else None
        return d_x, d_W, d_b, None, None


def _by_latent(p: Pattern, values: Tensor) -> Tensor:
    """The sum of each latent's values. On a GPU `index_add_` adds in any order, and gives other bits each time."""
    if kernels_for(values) is not None:
        return p.scatter_sum(values, values.new_ones(len(p.offsets) - 1, 1)).squeeze(1)
    return values.new_zeros(p.n_latents).index_add_(0, p.ids, values)
