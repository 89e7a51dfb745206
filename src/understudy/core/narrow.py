"""Encoders in few bits, and which latents can be among those that are looked for.

A product in few bits comes with how far it can be from the true one, so that no latent escapes. bf16 costs about half
an fp32 product where the processor multiplies bf16 itself, int8 about a fifth where it multiplies int8 (AVX-512 VNNI
and its like). R rows, L latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.records.errors import BadInput, Imprecise
from understudy.core.top import block_size, ranked, step_rows

Bits = Literal["bf16", "int8"]
SPARE = 32
"""Columns added to a product, or a few more, so that the bias is part of it and the width is what processors like."""


class Candidates(NamedTuple):
    """Row, id, product and how far that can be from the true one, row after row; and the rows that are left out."""

    row: Int[Tensor, " z"]
    latent: Int[Tensor, " z"]
    product: Float[Tensor, " z"]
    bound: Float[Tensor, " z"]
    out: Bool[Tensor, " r"]


class Products(NamedTuple):
    """Of some rows. `maxima` and `slack` are in steps of each row, which order its latents as well."""

    held: Tensor
    maxima: Float[Tensor, "r blocks"]
    slack: Float[Tensor, "r blocks"]
    """The bound, but for what holding a product loses."""
    steps: Float[Tensor, " r"]


class Narrow(ABC):
    """An encoder in few bits, with how far a product with it can be from the true one.

    The bias is part of the product: x~ = (x, m, ..., m) and w~ = (w, b/cm, ..., b/cm), c times each, m about as large
    as entries of x. A product p of the rounded x' and w' obeys

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

    def largest(self, x: Float[Tensor, "r d"], k: int) -> "Candidates":
        """Every latent that can be among the k largest of its row. Rows are out where more blocks hold such latents
        than are worth ranking, and without a bound (NaN)."""
        seen = self._multiplied(x)
        bound = self._bound(seen.maxima, seen.slack)
        least = ranked(seen.maxima - bound, k)[1].amin(1)
        row, block = (seen.maxima + bound >= least[:, None]).nonzero(as_tuple=True)
        blocks = torch.bincount(row, minlength=len(x))
        out = (blocks < k) | (blocks > max(4 * k, self.n_blocks // 4))
        row, block = _kept(row, block, out)
        return self._inside(seen, row, block, least[row, None], out)

    def above(self, x: Float[Tensor, "r d"], theta: Float[Tensor, " L"]) -> "Candidates":
        """Every latent that can be above its own theta. Rows are out as in `largest`."""
        seen = self._multiplied(x)
        lowered = theta * (1 - 2.0**-20 * theta.sign())  # by what dividing by steps may lose
        lowered = lowered.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)  # nothing is above NaN
        padded = lowered.new_full((self.n_blocks * self.size,), torch.inf)
        padded[: self.n] = lowered
        padded = padded.view(self.size, self.n_blocks)
        reach = seen.maxima + self._bound(seen.maxima, seen.slack)
        row, block = (reach >= padded.amin(0) / seen.steps[:, None]).nonzero(as_tuple=True)
        out = (torch.bincount(row, minlength=len(x)) > self.n_blocks // 4) | reach.isnan().any(1)
        row, block = _kept(row, block, out)
        return self._inside(seen, row, block, padded.T[block] / seen.steps[row, None], out)

    def _multiplied(self, x: Tensor) -> "Products":
        rows = self._extended(x, x.new_full((len(x),), self.m))
        narrow, steps = torch.empty_like(rows, dtype=self.dtype), self.steps(_largest(rows))
        wide = self.narrow(rows, steps, narrow)
        slip = torch.stack([_norm(rows - wide), _norm(wide)], 1)
        products = self.multiply(narrow, self.held[: len(x)])
        products[:, self.n :] = self.lowest
        maxima = products.unflatten(1, (self.size, self.n_blocks)).amax(1).to(x.dtype).mul_(self.step)
        return Products(products, maxima, (slip / steps[:, None]) @ self.limits, steps)

    def _inside(
        self, seen: "Products", row: Tensor, block: Tensor, level: Float[Tensor, "pairs 1"], out: Tensor
    ) -> "Candidates":
        """Of the blocks (row, block) the latents whose product can reach `level`: one for each pair or each latent, in
        steps of the row."""
        slack = seen.slack[row, block]
        most = torch.finfo(level.dtype).max / 2
        level = ((level - slack[:, None]) / self.step[block, None]).clamp_(-most, most)
        first = row * seen.held.shape[1] + block
        inside = torch.arange(0, seen.held.shape[1], self.n_blocks, device=row.device)
        held = seen.held.view(-1).take(first[:, None] + inside)
        pair, within = (held >= self.below(level)).nonzero(as_tuple=True)
        row, block, slack = row[pair], block[pair], slack[pair]
        product = held[pair, within].to(seen.maxima.dtype) * self.step[block]
        bound, steps = self._bound(product, slack), seen.steps[row]
        return Candidates(row, block + within * self.n_blocks, product * steps, bound * steps, out)

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
def multiplies_int8() -> bool:
    """Whether this processor has an instruction for sums of products of int8, and torch an exact product of it."""
    says = getattr(torch.cpu, "_is_avx512_vnni_supported", getattr(torch.cpu, "_is_vnni_supported", lambda: False))
    try:
        return bool(says()) and int8_is_exact(SPARE) is None
    except Imprecise:
        return False


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


NARROW: dict[Bits, type[Narrow]] = {"bf16": InBf16, "int8": InInt8}


def _kept(row: Tensor, block: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Without the rows that are left out."""
    return (row[~out[row]], block[~out[row]]) if bool(out.any()) else (row, block)


def _norm(rows: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """Not below the length of each row, whose smallest entries have squares that fp32 does not hold."""
    return rows.norm(dim=1) + 2.0**-63 * rows.shape[1] ** 0.5


def _largest(rows: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """The largest absolute entry of each row."""
    return torch.maximum(rows.amax(1), -rows.amin(1))
