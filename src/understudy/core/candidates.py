"""What `core/top.py` finds, from candidates that none of it escapes.

A product in few bits proposes (`core/narrow.py`), and the fp32 values of what it proposes decide. So ids and values are
those of an fp32 product, at a fifth to a half of its time. R rows, L latents, Z candidates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.narrow import NARROW, Bits, Candidates
from understudy.core.pattern import Pattern
from understudy.core.records.errors import Imprecise
from understudy.core.top import Found, Ragged, above, joined, largest

K_ABOVE = 32
"""Latents a place that blocks are made for, where a threshold says how many there are."""


class Searched:
    """What a search among candidates did, for the record: how many it ranked, how many rows it took in fp32."""

    def __init__(self) -> None:
        self.rows = self.candidates = self.whole_rows = 0

    def add(self, found: Candidates) -> None:
        self.rows += len(found.out)
        self.candidates += len(found.latent)
        self.whole_rows += int(found.out.sum())


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
    encoder, record = NARROW[bits](W, b, k, _usual_entry(x)), record or Searched()
    ids, values = x.new_empty(len(x), k, dtype=torch.long), x.new_empty(len(x), k)
    step = len(encoder.held)
    for start in range(0, len(x), step):
        part, block = x[start : start + step], slice(start, start + step)
        found = encoder.largest(part, k)
        pattern, exact = _decided(found, part, W, b, bits)
        latent, offsets, counts = pattern.ids, pattern.offsets, pattern.offsets.diff()
        padded = exact.new_full((len(part), max(k, int(counts.max()))), -torch.inf)
        padded[found.row, torch.arange(len(latent), device=x.device) - offsets[found.row]] = exact
        values[block], at = padded.topk(k, dim=1, sorted=False)
        if len(latent):
            ids[block] = latent[(offsets[:-1, None] + at).clamp_(max=len(latent) - 1)]
        whole = found.out.nonzero().squeeze(-1)
        if len(whole):
            best, exactly = largest(part[whole], W, b, k)
            ids[start + whole], values[start + whole] = best.view(-1, k), exactly.view(-1, k)
        record.add(found)
    return ids.view(-1), values.view(-1)


@torch.no_grad()
def above_of_candidates(
    x: Float[Tensor, "R d"],
    W: Float[Tensor, "L d"],
    b: Float[Tensor, " L"],
    theta: Float[Tensor, " L"],
    bits: Bits,
    record: Searched | None = None,
) -> Ragged:
    """All latents above their own theta, as an fp32 product finds them, from one product in few bits.

    Decided, and watched over, as in `largest_of_candidates`. Where most rows of a chunk have too many candidates, the
    chunks that follow are done in fp32.
    """
    if len(x) == 0:
        return _in_fp32(x, W, b, theta)
    encoder, record = NARROW[bits](W, b, min(K_ABOVE, len(W)), _usual_entry(x)), record or Searched()
    step, given_up, parts = len(encoder.held), False, []
    for start in range(0, len(x), step):
        part = x[start : start + step]
        if given_up:
            parts.append(_in_fp32(part, W, b, theta))
            continue
        found = encoder.above(part, theta)
        pattern, exact = _decided(found, part, W, b, bits)
        keep = exact > theta[pattern.ids]
        row, latent, exact = found.row[keep], pattern.ids[keep], exact[keep]
        whole = found.out.nonzero().squeeze(-1)
        if len(whole):
            more = _in_fp32(part[whole], W, b, theta)
            row = torch.cat([row, whole.repeat_interleave(more.counts)])
            order = row.argsort(stable=True)
            row, latent = row[order], torch.cat([latent, more.ids])[order]
            exact = torch.cat([exact, more.values])[order]
        parts.append(Ragged(latent, exact, torch.bincount(row, minlength=len(part))))
        record.add(found)
        given_up = 2 * len(whole) > len(part)
    return joined(parts)


def _in_fp32(x: Tensor, W: Tensor, b: Tensor, theta: Tensor) -> Ragged:
    return above([(slice(0, len(x)), torch.addmm(b, x, W.T))], theta)


def _decided(found: Candidates, x: Tensor, W: Tensor, b: Tensor, bits: Bits) -> tuple[Pattern, Tensor]:
    """Candidates as a pattern, and their fp32 values. Raises Imprecise where one lies outside its bound."""
    counts = torch.bincount(found.row, minlength=len(x))
    pattern = Pattern(found.latent, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), len(W))
    exact = pattern.dot(x, W) + b[found.latent]
    if bool(((exact - found.product).abs() > found.bound).any()):
        raise Imprecise(
            f"a product in {bits} was further from the fp32 one than {bits} allows: this processor or torch build "
            "rounds otherwise, and candidates would be missed. Use --search fp32."
        )
    return pattern, exact


def _usual_entry(x: Tensor) -> float:
    """Root mean square of the entries of a row in the middle: a few rows of another size do not matter. 1 where that is
    0 or no number."""
    m = float(x.square().mean(1).nanmedian().sqrt()) if len(x) else 1.0
    return m if 0 < m < torch.inf else 1.0
