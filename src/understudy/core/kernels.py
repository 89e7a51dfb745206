"""The sparse products and the top-k on a GPU, as Triton kernels. Their eager twins are in `pattern` and `top`.

Needs triton, which torch's CUDA builds bring along; imported on first use only. Every sum runs in fp32 and in one fixed
order, so that the same product gives the same bits again. R rows, L latents, Z kept occurrences. Kernels are launched
on the GPU that holds the tensors, which need not be the current one.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

SEGMENT = 256
"""Occurrences that one program sums; a latent kept at more places is summed in parts."""
MOST_RANKED = 1 << 14
"""Numbers of a row that one program ranks: they stay in its registers."""


def bag(
    ids: Int[Tensor, " Z"], table: Float[Tensor, "N d"], offsets: Int[Tensor, " R_plus_1"], weights: Float[Tensor, " Z"]
) -> Float[Tensor, "R d"]:
    """Row r = sum over z in `offsets[r]:offsets[r+1]` of weights[z] * table[ids[z]].

    A row with more than `SEGMENT` occurrences is summed in segments first, then over them: a latent that is on
    everywhere would else hold up a whole step, and adding atomically would give other bits each time.
    """
    counts = offsets.diff()
    long = counts > SEGMENT
    if not bool(long.any()):
        return _sum(ids, table, offsets, weights)
    pieces = torch.where(long, (counts + SEGMENT - 1) // SEGMENT, 1)
    ends = pieces.cumsum(0)
    row = torch.repeat_interleave(torch.arange(len(counts), device=ids.device), pieces)
    nth = torch.arange(len(row), device=ids.device) - (ends - pieces)[row]
    starts = offsets[:-1][row] + nth * SEGMENT
    stops = torch.minimum(starts + SEGMENT, offsets[1:][row])
    out = table.new_empty(len(counts), table.shape[1])
    short = ~long[row]
    _sum_into(out, row[short], ids, table, starts[short], stops[short], weights)
    parts = table.new_empty(int(long[row].sum()), table.shape[1], dtype=torch.float32)
    each = torch.arange(len(parts), device=ids.device)
    _sum_into(parts, each, ids, table, starts[~short], stops[~short], weights)
    tops = pieces[long].cumsum(0)
    _sum_into(out, long.nonzero().squeeze(-1), each, parts, tops - pieces[long], tops, torch.ones_like(parts[:, 0]))
    return out


def dot(
    ids: Int[Tensor, " Z"], offsets: Int[Tensor, " R_plus_1"], left: Float[Tensor, "R d"], right: Float[Tensor, "L d"]
) -> Float[Tensor, " Z"]:
    """left[row] . right[id] for each occurrence."""
    out = left.new_empty(len(ids))
    if len(ids):
        d = left.shape[1]
        width = min(256, triton.next_power_of_2(d))
        with torch.cuda.device_of(left):
            _dot_kernel[(len(left),)](ids, offsets, left.contiguous(), right.contiguous(), out, d, Z=16, D=width)
    return out


def top(x: Float[Tensor, "R n"], k: int) -> tuple[Int[Tensor, "R k"], Float[Tensor, "R k"]]:
    """Ids and values of the k largest of each row, in order of ids; of equal ones the first. NaN counts as largest.

    The k-th largest is found bit by bit, from the highest: no sorting. n is at most `MOST_RANKED`.
    """
    rows, n = x.shape
    x = x.contiguous()
    ids, values = torch.empty(rows, k, dtype=torch.long, device=x.device), x.new_empty(rows, k)
    if rows and k:
        held = triton.next_power_of_2(n)
        with torch.cuda.device_of(x):
            _top_kernel[(rows,)](x, ids, values, n, k, N=held, num_warps=min(16, max(4, held // 1024)))
    return ids, values


def _sum(ids: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    into = torch.arange(len(out), device=ids.device)
    _sum_into(out, into, ids, table, offsets[:-1], offsets[1:], weights)
    return out


def _sum_into(
    out: Tensor, into: Tensor, ids: Tensor, table: Tensor, starts: Tensor, stops: Tensor, weights: Tensor
) -> None:
    """out[into[i]] = sum over z in `starts[i]:stops[i]`."""
    d = table.shape[1]
    if len(into) and d:
        width = min(512, triton.next_power_of_2(d))
        grid = (len(into), triton.cdiv(d, width))
        arrays = (t.contiguous() for t in (into, ids, table, starts, stops, weights))
        with torch.cuda.device_of(table):
            _sum_kernel[grid](out, *arrays, d, D=width)


@triton.jit
def _sum_kernel(out, into, ids, table, starts, stops, weights, d, D: tl.constexpr):
    piece = tl.program_id(0)
    columns = tl.program_id(1) * D + tl.arange(0, D)
    inside = columns < d
    total = tl.zeros([D], dtype=tl.float32)
    for z in range(tl.load(starts + piece), tl.load(stops + piece)):
        row = tl.load(table + tl.load(ids + z) * d + columns, mask=inside, other=0.0)
        total += tl.load(weights + z).to(tl.float32) * row.to(tl.float32)
    tl.store(out + tl.load(into + piece) * d + columns, total, mask=inside)


@triton.jit
def _dot_kernel(ids, offsets, left, right, out, d, Z: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    for z in range(first, last, Z):
        at = z + tl.arange(0, Z)
        real = at < last
        which = tl.load(ids + at, mask=real, other=0)
        total = tl.zeros([Z], dtype=tl.float32)
        for start in range(0, d, D):
            columns = start + tl.arange(0, D)
            inside = columns < d
            x = tl.load(left + row * d + columns, mask=inside, other=0.0).to(tl.float32)
            both = real[:, None] & inside[None, :]
            w = tl.load(right + which[:, None] * d + columns[None, :], mask=both, other=0.0).to(tl.float32)
            total += tl.sum(w * x[None, :], axis=1)
        tl.store(out + at, total, mask=real)


@triton.jit
def _top_kernel(x, ids, values, n, k, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, N)
    real = columns < n
    held = tl.load(x + row * n + columns, mask=real, other=0.0)
    bits = held.to(tl.float32).to(tl.int32, bitcast=True)
    # Of floats read as integers the negative ones run backwards; turned over, all are in order, as unsigned numbers.
    key = (tl.where(bits < 0, ~bits, bits ^ -2147483648)).to(tl.uint32, bitcast=True)
    key = tl.where(real, key, 0)
    least = tl.zeros([], dtype=tl.uint32)
    for i in tl.static_range(32):
        higher = least | (tl.full([], 1, tl.uint32) << (31 - i))
        least = tl.where(tl.sum((key >= higher).to(tl.int32)) >= k, higher, least)
    above, level = key > least, (key == least) & real
    room = k - tl.sum(above.to(tl.int32))
    kept = above | (level & (tl.cumsum(level.to(tl.int32)) <= room))
    place = row * k + tl.cumsum(kept.to(tl.int32)) - 1
    tl.store(ids + place, columns.to(tl.int64), mask=kept)
    tl.store(values + place, held, mask=kept)
