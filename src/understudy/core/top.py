"""The k largest pre-activations of each place: in fp32, or from candidates of a bf16 product that no true one escapes.

R rows, L latents, Z candidates. Both ways look at blocks of latents first: a row's k largest lie in the k blocks with
the largest maxima, so that only those are ranked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.pattern import CHUNK_BYTES, Pattern, kernels_for
from understudy.core.records.errors import Imprecise

UNIT = 2.0**-8
"""Rounding to bf16 changes a number by at most this share of it."""
SPARE = 32
"""Columns added to a product so that the bias is part of it; a multiple of what processors like."""
Found = tuple[Int[Tensor, " Z"], Float[Tensor, " Z"]]
"""Ids and values, k for each row."""


def step_rows(n: int, itemsize: int) -> int:
    """Rows of a chunk: few enough for its products to be ranked from the cache, enough to multiply at full speed."""
    row = max(1, n) * itemsize
    return max(1, min(CHUNK_BYTES // row, max(512, (1 << 24) // row)))


@torch.no_grad()
def largest(x: Float[Tensor, "R d"], W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int) -> Found:
    """The k largest of `x W^T + b` in each row, not in order. One chunk of the product is held at a time."""
    step = min(max(1, len(x)), step_rows(len(W), x.element_size()))
    held = x.new_empty(step, len(W))
    found = []
    for rows in x.split(step):
        block = held[: len(rows)]
        torch.addmm(b, rows, W.T, out=block)
        found.append(top(block, k))
    ids, values = (torch.cat(parts).reshape(-1) for parts in zip(*found, strict=True))
    return ids, values


def top(block: Float[Tensor, "r L"], k: int) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """Ids and values of the k largest of each row, not in order: those of the k blocks whose maxima are the largest."""
    n = block.shape[1]
    size = _block_size(n, k)
    if size == 1:
        return _ranked(block, k)
    n_blocks = n // size
    maxima = block[:, : size * n_blocks].unflatten(1, (size, n_blocks)).amax(1)
    first, _ = _ranked(maxima, k)
    inside = first[:, None, :] + torch.arange(0, size * n_blocks, n_blocks, device=block.device)[:, None]
    rest = torch.arange(size * n_blocks, n, device=block.device).expand(len(block), -1)
    columns = torch.cat([inside.flatten(1), rest], 1)
    at = torch.arange(0, block.numel(), n, device=block.device)[:, None]
    picked, values = _ranked(block.view(-1).take(columns + at), k)
    return columns.gather(1, picked), values


def _ranked(x: Float[Tensor, "r n"], k: int) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """Ids and values of the k largest of each row, not in order."""
    if (kernels := kernels_for(x)) is not None and x.shape[1] <= kernels.MOST_RANKED:
        return kernels.top(x, k)
    values, ids = x.topk(k, dim=1, sorted=False)
    return ids, values


def _block_size(n: int, k: int) -> int:
    """What leaves the fewest numbers to rank: n / size maxima, then k size entries. 1: blocks would not help."""
    return min((1, 4, 8, 16, 32, 64), key=lambda s: n if s == 1 else n if n < 2 * k * s else n // s + (k + 1) * s)


# -- candidates from a bf16 product -----------------------------------------------------------------------------------


class Narrow:
    """An encoder in bf16, with how far a product with it can be from the true one.

    With x' and w' the rounded rows, a product p that was summed in fp32 and rounded to bf16 obeys

        |x.w + b - p| <= |x - x'| |w| + |x'| |w - w'| + |b - b'| + gamma (|x'| |w'| + |b'|) + 1.01 u |p|

    with u = 2^-8 and gamma = (d + 34) 2^-23, which allows for any order of summation. The norms are taken of the rows
    at hand, so the bound holds for these numbers, not on average.
    """

    def __init__(self, W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int) -> None:
        n, d = W.shape
        self.k, self.size, self.most = k, _block_size(n, k), max(4 * k, n // 64)
        self.n_blocks = -(-n // self.size)
        padded = self.n_blocks * self.size
        self.W = torch.zeros(padded, d + SPARE, dtype=torch.bfloat16, device=W.device)
        norms, slips = W.new_zeros(padded), W.new_zeros(padded)
        step = max(1, (1 << 20) // max(1, 4 * d))
        for i in range(0, n, step):
            part, narrow = W[i : i + step], self.W[i : min(i + step, n), :d]
            narrow.copy_(part)
            wide = narrow.to(W.dtype)
            norms[i : i + len(part)] = part.norm(dim=1)
            slips[i : i + len(part)] = (wide - part).norm(dim=1) + self._gamma(d) * wide.norm(dim=1)
        high = b.bfloat16()
        low = (b - high.to(b.dtype)).bfloat16()
        self.W[:n, d], self.W[:n, d + 1] = high, low
        self.W[n:, d] = -1e30  # latents that only fill the last block are never found
        both = high.to(b.dtype) + low.to(b.dtype)
        bias = W.new_zeros(padded)
        bias[:n] = (b - both).abs() + self._gamma(d) * (high.to(b.dtype).abs() + low.to(b.dtype).abs())
        by_block = torch.stack([norms, slips, bias]).view(3, self.size, self.n_blocks)
        self.limits = by_block.amax(1)
        """[3, blocks]: largest |w|, largest |w - w'| + gamma |w'|, largest slip of the bias."""
        self.held = torch.empty(step_rows(padded, 2), padded, dtype=torch.bfloat16, device=W.device)

    @staticmethod
    def _gamma(d: int) -> float:
        return (d + SPARE + 2) * 2.0**-23

    def candidates(self, x: Float[Tensor, "r d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(row, id, product, its bound) of every latent that can be among the k largest of its row; of a row with more
        than `most` blocks of them nothing, as no more are worth ranking."""
        narrow = torch.zeros(len(x), self.W.shape[1], dtype=torch.bfloat16, device=x.device)
        narrow[:, : x.shape[1]] = x
        narrow[:, x.shape[1] : x.shape[1] + 2] = 1
        wide = narrow[:, : x.shape[1]].to(x.dtype)
        slip = torch.stack([(x - wide).norm(dim=1), wide.norm(dim=1), torch.ones_like(x[:, 0])], 1)
        with sums_in_fp32(x.device):
            products = torch.mm(narrow, self.W.T, out=self.held[: len(x)])
        maxima = products.unflatten(1, (self.size, self.n_blocks)).amax(1).to(x.dtype)
        bound = (slip @ self.limits) * 1.001 + 1.01 * UNIT * maxima.abs()
        least = _ranked(maxima - bound, self.k)[1].amin(1)
        possible = maxima + bound >= least[:, None]
        row, block = (possible & (possible.sum(1, keepdim=True) <= self.most)).nonzero(as_tuple=True)
        flat = row * products.shape[1] + block
        inside = torch.arange(0, products.shape[1], self.n_blocks, device=x.device)
        product = products.view(-1).take(flat[:, None] + inside).to(x.dtype)
        bound = (bound[row, block] - 1.01 * UNIT * maxima[row, block].abs())[:, None] + 1.01 * UNIT * product.abs()
        pair, within = (product + bound >= least[row][:, None]).nonzero(as_tuple=True)
        return row[pair], block[pair] + within * self.n_blocks, product[pair, within], bound[pair, within]


@contextmanager
def sums_in_fp32(device: torch.device) -> Iterator[None]:
    """Products of bf16 on a GPU are summed in fp32 within, as `Narrow`'s bound takes for granted: torch lets a GPU add
    partial sums in bf16 unless it is told not to. The setting is torch's own, of all threads, and is put back."""
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or not matmul.allow_bf16_reduced_precision_reduction:
        yield
        return
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = True


class Searched:
    """What a search with bf16 candidates did, for the record: how many it ranked, how many rows it took in fp32."""

    def __init__(self) -> None:
        self.rows = self.candidates = self.whole_rows = 0


@torch.no_grad()
def largest_of_candidates(
    x: Float[Tensor, "R d"], W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int, record: Searched | None = None
) -> Found:
    """As `largest`, with one bf16 product in place of the fp32 one; ids and values are those of fp32.

    The product's error bound says which latents can be among the k largest. Their fp32 values decide. A row with more
    candidates than ranking them is worth, or without a bound (NaN), is done by `largest`. Every candidate's value is
    held against its bound: raises Imprecise where one lies outside, as then the processor rounds otherwise.
    """
    encoder, record = Narrow(W, b, k), record or Searched()
    ids, values = x.new_empty(len(x), k, dtype=torch.long), x.new_empty(len(x), k)
    step = len(encoder.held)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        row, latent, product, bound = encoder.candidates(part)
        counts = torch.bincount(row, minlength=len(part))
        few = (counts >= k) & (counts <= encoder.most)
        kept = few[row]
        row, latent, product, bound = row[kept], latent[kept], product[kept], bound[kept]
        counts = counts * few
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        exact = Pattern(latent, offsets, len(W)).dot(part, W) + b[latent]
        if bool(((exact - product).abs() > bound).any()):
            raise Imprecise(
                "a bf16 product was further from the fp32 one than bf16 with sums in fp32 allows: this processor or "
                "torch build rounds otherwise, and candidates would be missed. Use --search fp32."
            )
        padded = exact.new_full((len(part), max(k, int(counts.max()))), -torch.inf)
        position = torch.arange(len(row), device=row.device) - offsets[row]
        padded[row, position] = exact
        best, at = padded.topk(k, dim=1, sorted=False)
        chosen = (offsets[:-1, None] + at).clamp(max=max(0, len(latent) - 1))
        block = slice(start, start + len(part))
        values[block] = best
        if len(latent):
            ids[block] = latent[chosen]
        whole = (~few).nonzero().squeeze(-1)
        if len(whole):
            found, exactly = largest(part[whole], W, b, k)
            ids[start + whole], values[start + whole] = found.view(-1, k), exactly.view(-1, k)
        record.rows += len(part)
        record.candidates += len(latent)
        record.whole_rows += len(whole)
    return ids.view(-1), values.view(-1)
