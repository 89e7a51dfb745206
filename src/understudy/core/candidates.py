"""The k largest pre-activations of each place from candidates that no true one escapes.

A product in few bits proposes, with how far it can be from the true one; the fp32 values of what it proposes decide. So
ids and values are those of `core/top.py`. bf16 costs about half an fp32 product where the processor multiplies bf16
itself, int8 about a fifth where it multiplies int8 (AVX-512 VNNI and its like). R rows, L latents, Z candidates.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.pattern import Pattern
from understudy.core.records.errors import BadInput, Imprecise
from understudy.core.top import Found, block_size, largest, ranked, step_rows

Bits = Literal["bf16", "int8"]
SPARE = 32
"""Columns added to a product, or a few more, so that the bias is part of it and the width is what processors like."""


class Narrow(ABC):
    """An encoder in few bits, with how far a product with it can be from the true one.

    The bias is part of the product: x~ = (x, m, ..., m) and w~ = (w, b/cm, ..., b/cm), c times each, m the root mean
    square of the rows. A product p of the rounded x' and w' obeys

        |x.w + b - p| <= |x~ - x'| |w~| + |x'| |w~ - w'| + gamma |x'| |w'| + 1.01 u |p|

    with u what is lost in holding p and gamma = (columns + 2) 2^-23, which allows for any order of summation, in fp32,
    on either side. The norms are taken of the rows at hand, so the bound holds for these numbers, not on average.

    Latents are held in blocks: block j has the latents j, j + n_blocks, j + 2 n_blocks, ..., all rounded to multiples
    of one step. What is left of the last blocks is never found.
    """

    dtype: torch.dtype
    holds: torch.dtype
    """What products are held in."""
    unit: float
    """u: the share of a product that is lost in holding it."""
    lowest: float
    """Below every product and every level."""

    def __init__(self, W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int, m: float) -> None:
        (n, d), self.m = W.shape, m
        self.size = block_size(n, 2 * k)
        self.n_blocks = -(-n // self.size)
        self.n, padded = n, self.n_blocks * self.size
        self.columns = SPARE * (-(-d // SPARE) + 1)
        self.gamma = (self.columns + 2) * 2.0**-23
        self.W = torch.zeros(padded, self.columns, dtype=self.dtype, device=W.device)
        spare = b / (self.columns - d) / m
        self.step = self.steps(self._by_block(torch.maximum(_largest(W), spare.abs())))
        steps = self.step.repeat(self.size)
        norms, slips = W.new_empty(n), W.new_empty(n)
        rows = max(1, (1 << 20) // (4 * self.columns))
        for i in range(0, n, rows):
            at = slice(i, min(n, i + rows))
            part = self._extended(W[at], spare[at])
            wide = self.narrow(part, steps[at], self.W[at])
            norms[at] = _norm(part)
            slips[at] = _norm(wide - part) + self.gamma * _norm(wide)
        self.limits = 1.001 * torch.stack([self._by_block(norms), self._by_block(slips)])
        """[2, blocks]: largest |w~|, largest |w~ - w'| + gamma |w'|; a little more, as these are rounded too."""
        self.held = torch.empty(step_rows(padded, self.holds.itemsize), padded, dtype=self.holds, device=W.device)

    # -- what differs between the numbers

    @abstractmethod
    def steps(self, largest: Tensor) -> Tensor:
        """What a stored number is a multiple of, for rows whose largest entries are these."""

    @abstractmethod
    def narrow(self, rows: Tensor, steps: Tensor, out: Tensor) -> Tensor:
        """Round rows into `out`; returns what the rounded numbers are worth."""

    @abstractmethod
    def below(self, level: Tensor) -> Tensor:
        """What a product as it is held is at least, if with its own bound's share `u` it can reach this level."""

    @abstractmethod
    def multiply(self, narrow: Tensor, out: Tensor) -> Tensor:
        """Products of rounded rows with all latents, in steps of both."""

    # -- the search

    def candidates(self, x: Float[Tensor, "r d"], k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Bool[Tensor, " r"]]:
        """(row, id, product, its bound) of every latent that can be among the k largest of its row; and the rows left
        out: without a bound (NaN), or with more blocks of such latents than are worth ranking."""
        rows = self._extended(x, x.new_full((len(x),), self.m))
        narrow, steps = torch.empty_like(rows, dtype=self.dtype), self.steps(_largest(rows))
        wide = self.narrow(rows, steps, narrow)
        slip = torch.stack([_norm(rows - wide), _norm(wide)], 1)
        products = self.multiply(narrow, self.held[: len(x)])
        products[:, self.n :] = self.lowest
        # From here on in steps of the row, which order the latents of a row as well.
        maxima = products.unflatten(1, (self.size, self.n_blocks)).amax(1).to(x.dtype).mul_(self.step)
        slack = (slip / steps[:, None]) @ self.limits
        bound = self._bound(maxima, slack)
        least = ranked(maxima - bound, k)[1].amin(1)
        row, block = (maxima + bound >= least[:, None]).nonzero(as_tuple=True)
        blocks = torch.bincount(row, minlength=len(x))
        out = (blocks < k) | (blocks > max(4 * k, self.n_blocks // 4))
        if bool(out.any()):
            row, block = row[~out[row]], block[~out[row]]
        slack = slack[row, block]
        level = (least[row] - slack) / self.step[block]
        first = row * products.shape[1] + block
        inside = torch.arange(0, products.shape[1], self.n_blocks, device=x.device)
        held = products.view(-1).take(first[:, None] + inside)
        pair, within = (held >= self.below(level)[:, None]).nonzero(as_tuple=True)
        row, block, slack = row[pair], block[pair], slack[pair]
        product = held[pair, within].to(x.dtype) * self.step[block]
        bound = self._bound(product, slack)
        return row, block + within * self.n_blocks, product * steps[row], bound * steps[row], out

    def _bound(self, product: Tensor, slack: Tensor) -> Tensor:
        return slack + 1.01 * self.unit * product.abs()

    def _extended(self, rows: Tensor, spare: Tensor) -> Tensor:
        """Rows with `spare`, one number for each, in all columns beyond theirs."""
        out = rows.new_empty(len(rows), self.columns)
        out[:, : rows.shape[1]] = rows
        out[:, rows.shape[1] :] = spare[:, None]
        return out

    def _by_block(self, of_latents: Float[Tensor, " L"]) -> Float[Tensor, " blocks"]:
        """The largest in each block of what is not below 0."""
        padded = of_latents.new_zeros(self.n_blocks * self.size)
        padded[: self.n] = of_latents
        return padded.view(self.size, self.n_blocks).amax(0)


class InBf16(Narrow):
    """Numbers in bf16, products summed in fp32 and held in bf16."""

    dtype = holds = torch.bfloat16
    unit, lowest = 2.0**-8, -torch.inf

    def steps(self, largest: Tensor) -> Tensor:
        return torch.ones_like(largest)

    def narrow(self, rows: Tensor, steps: Tensor, out: Tensor) -> Tensor:
        return out.copy_(rows).to(rows.dtype)

    def below(self, level: Tensor) -> Tensor:
        return (level - 4 * self.unit * level.abs()).clamp_(min=torch.finfo(self.holds).min).to(self.holds)

    def multiply(self, narrow: Tensor, out: Tensor) -> Tensor:
        with sums_in_fp32(narrow.device):
            return torch.mm(narrow, self.W.T, out=out)


class InInt8(Narrow):
    """Numbers in 255 steps, from a row's largest entry down to its negative; products and sums are exact."""

    dtype, holds = torch.int8, torch.int32
    unit, lowest = 2.0**-21, -(2**31)

    def __init__(self, W: Float[Tensor, "L d"], b: Float[Tensor, " L"], k: int, m: float) -> None:
        if W.device.type != "cpu":
            raise BadInput(f"--search int8 is for processors; the encoder is on {W.device}. Use --search bf16 there.")
        super().__init__(W, b, k, m)
        int8_is_exact(self.columns)

    def steps(self, largest: Tensor) -> Tensor:
        return (largest / 127).clamp(min=torch.finfo(largest.dtype).tiny)

    def narrow(self, rows: Tensor, steps: Tensor, out: Tensor) -> Tensor:
        whole = (rows / steps[:, None]).round_()
        out.copy_(whole)
        return whole.mul_(steps[:, None])

    def below(self, level: Tensor) -> Tensor:
        most = 2.0**31 - 128  # of the numbers that fp32 has, the largest that int32 holds
        return (level - 4 * self.unit * level.abs()).floor_().clamp_(-most, most).to(self.holds)

    def multiply(self, narrow: Tensor, out: Tensor) -> Tensor:
        return torch._int_mm(narrow, self.W.T, out=out)


@cache
def int8_is_exact(columns: int) -> None:
    """Raises Imprecise where this processor or torch build does not multiply int8 exactly: without an instruction for
    it, rows are made positive and pairs are added in 16 bits, too few for (127 + 128) * 127 * 2."""
    rows = torch.full((32, columns), 127, dtype=torch.int8)
    rows[1::2] = -127
    try:
        exact = bool((torch._int_mm(rows, rows.T).abs() == 127 * 127 * columns).all())
    except (AttributeError, RuntimeError) as e:
        raise Imprecise(f"this torch ({torch.__version__}) does not multiply int8: {e}. Use --search fp32.") from e
    if not exact:
        raise Imprecise(
            "products of int8 are not exact here: this processor or torch build adds them in too few bits, and "
            "candidates would be missed. Use --search bf16 or fp32."
        )


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
    """What a search among candidates did, for the record: how many it ranked, how many rows it took in fp32."""

    def __init__(self) -> None:
        self.rows = self.candidates = self.whole_rows = 0


NARROW: dict[Bits, type[Narrow]] = {"bf16": InBf16, "int8": InInt8}


@torch.no_grad()
def largest_of_candidates(
    x: Float[Tensor, "R d"],
    W: Float[Tensor, "L d"],
    b: Float[Tensor, " L"],
    k: int,
    bits: Bits,
    record: Searched | None = None,
) -> Found:
    """As `largest`, with one product in few bits in place of the fp32 one; ids and values are those of fp32.

    The product's error bound says which latents can be among the k largest. Their fp32 values decide. A row with more
    candidates than ranking them is worth, or without a bound (NaN), is done by `largest`, and so are all rows of 16-bit
    numbers. Every candidate's value is held against its bound: raises Imprecise where one lies outside, as then the
    processor rounds otherwise.
    """
    if x.dtype.itemsize < 4:
        return largest(x, W, b, k)
    encoder, record = NARROW[bits](W, b, k, _root_mean_square(x)), record or Searched()
    ids, values = x.new_empty(len(x), k, dtype=torch.long), x.new_empty(len(x), k)
    step = len(encoder.held)
    for start in range(0, len(x), step):
        part, block = x[start : start + step], slice(start, start + step)
        row, latent, product, bound, out = encoder.candidates(part, k)
        counts = torch.bincount(row, minlength=len(part))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        exact = Pattern(latent, offsets, len(W)).dot(part, W) + b[latent]
        if bool(((exact - product).abs() > bound).any()):
            raise Imprecise(
                f"a product in {bits} was further from the fp32 one than {bits} allows: this processor or torch build "
                "rounds otherwise, and candidates would be missed. Use --search fp32."
            )
        padded = exact.new_full((len(part), max(k, int(counts.max()))), -torch.inf)
        padded[row, torch.arange(len(row), device=row.device) - offsets[row]] = exact
        values[block], at = padded.topk(k, dim=1, sorted=False)
        if len(latent):
            ids[block] = latent[(offsets[:-1, None] + at).clamp_(max=len(latent) - 1)]
        whole = out.nonzero().squeeze(-1)
        if len(whole):
            found, exactly = largest(part[whole], W, b, k)
            ids[start + whole], values[start + whole] = found.view(-1, k), exactly.view(-1, k)
        record.rows += len(part)
        record.candidates += len(latent)
        record.whole_rows += len(whole)
    return ids.view(-1), values.view(-1)


def _root_mean_square(x: Tensor) -> float:
    """Of all entries; 1 where that is 0 or no number."""
    m = float(x.square().mean().sqrt())
    return m if 0 < m < torch.inf else 1.0


def _norm(rows: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """Not below the length of each row, whose smallest entries have squares that fp32 does not hold."""
    return rows.norm(dim=1) + 2.0**-63 * rows.shape[1] ** 0.5


def _largest(rows: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """The largest absolute entry of each row."""
    return torch.maximum(rows.amax(1), -rows.amin(1))
