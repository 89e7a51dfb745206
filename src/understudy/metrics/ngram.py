"""N-grams: counted models of orders 0 to 5, and the order at which one is as good as what is judged.

A replaced network that predicts no better than a bigram table has kept no more than a bigram table, whatever share of
an ablation's damage it recovers. Interpolated modified Kneser-Ney smoothing: a rival that nobody needs to excuse.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.errors import BadData, WrongShape
from understudy.core.records.metric import Metric, NotMeasured

_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class _Level:
    """P(w | h) = share[hw] + rest[h] P_lower(w | h'). The last entry of each, at -1, is for what was never seen."""

    share: Float[np.ndarray, " ngrams_and_none"]
    rest: Float[np.ndarray, " contexts_and_none"]

    @classmethod
    def smoothed(cls, context: np.ndarray, counts: np.ndarray, n_contexts: int) -> "_Level":
        """Discounted shares of the counts within each context; what is discounted is the rest."""
        total = np.bincount(context, weights=counts, minlength=n_contexts).astype(np.float32)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        spared = np.bincount(context, weights=discount, minlength=n_contexts).astype(np.float32)
        rest, share = np.ones(n_contexts + 1, np.float32), np.zeros(len(counts) + 1, np.float32)
        np.divide(spared, total, out=rest[:-1], where=total > 0)
        np.divide(counts - discount, np.maximum(total, 1)[context], out=share[:-1])
        return cls(share, rest)

    def applied(self, ngram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities; -1 in ngram or context means it was never seen."""
        return self.share[ngram] + self.rest[context] * lower


class NGrams:
    """Models of order 0 (uniform), 1 (unigram) ... max_order over token ids. Contexts never cross a document boundary.

    Each order is a model of its own: raw counts at its top, continuation counts (in how many left neighbours an n-gram
    was seen) below. Where a document or row offers less context than an order wants, the highest order that fits
    answers. Source: Chen and Goodman 1998, An Empirical Study of Smoothing Techniques, section 3; the start of a
    document counts as a left neighbour.
    """

    def __init__(
        self, n_vocab: int, keys: list[np.ndarray], raw: list[_Level], continued: list[_Level], n_tokens: int
    ) -> None:
        """Use `NGrams.fit`. keys[k]: sorted context * n_vocab + token of the n-grams of order k + 2."""
        self.n_vocab, self.max_order, self.n_tokens = n_vocab, len(raw), n_tokens
        self._keys, self._raw, self._continued = keys, raw, continued

    @classmethod
    def fit(
        cls, tokens: Int[Tensor, "*stream"], document: Int[Tensor, "*stream"], n_vocab: int, max_order: int = 5
    ) -> "NGrams":
        """Count a stream of tokens; rows are read end to end, so a document may run on in the next row.

        document: the same number at the tokens of one document, which stand together; negative at padding.
        4 million tokens take about 4 s of one core; 5 million with nearly every n-gram distinct 6 s and 0.7 GB.
        Raises BadData without tokens or with ids outside the vocabulary.
        """
        real = document.reshape(-1).cpu().numpy() >= 0
        token = tokens.reshape(-1).cpu().numpy()[real].astype(np.int32, copy=False)
        if len(token) == 0:
            raise BadData("There is no token to count.")
        _check_ids(token, n_vocab)
        position = _position(document.reshape(-1).cpu().numpy()[real]).astype(np.int32)
        # 32-bit indices, and temporaries that end early: half of the memory.
        counts, n_contexts, ids = np.bincount(token, minlength=n_vocab).astype(np.int32), 1, token
        context, keys, raw, continued = np.zeros(n_vocab, np.int32), [], [], []
        for order in range(1, max_order + 1):
            raw.append(_Level.smoothed(context, counts, n_contexts))
            if order == max_order:
                break
            at = np.flatnonzero(position >= order)
            found = ids[at - 1].astype(np.int64) * n_vocab + token[at]
            by_key = np.argsort(found)
            found, at = found[by_key], at[by_key].astype(np.int32)
            del by_key
            first = np.flatnonzero(found[1:] != found[:-1]) + 1
            first = np.concatenate([[0], first]) if len(found) else first
            # Left neighbours of each n-gram of this order: one longer n-gram for each, and the document's start.
            neighbours = np.bincount(ids[at[first]], minlength=len(counts)).astype(np.int32)
            neighbours[np.unique(ids[position == order - 1])] += 1
            continued.append(_Level.smoothed(context, neighbours, n_contexts))
            keys.append(found[first])
            n_contexts, counts = len(counts), np.diff(first, append=len(found)).astype(np.int32)
            del found, first, neighbours
            context = (keys[-1] // n_vocab).astype(np.int32)
            ids = np.full(len(token), -1, np.int32)
            ids[at] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return cls(n_vocab, keys, raw, continued, len(token))

    def losses(
        self, tokens: Int[Tensor, "rows pos"], document: Int[Tensor, "rows pos"], scored: Bool[Tensor, "rows pos"]
    ) -> Float[Tensor, "orders rows pos"]:
        """Loss in nats of the next token at each scored place, for orders 0..max_order; 0 where not scored.

        As for a network, place p is scored on token p + 1 of its row and sees no token of an earlier row. A place whose
        next token is of another document or absent cannot be scored: BadData.
        """
        out = torch.zeros(self.max_order + 1, *tokens.shape)
        step = max(1, _ROWS_AT_ONCE // max(1, tokens.shape[1]))
        for i in range(0, len(tokens), step):
            part = slice(i, i + step)
            place, losses = self._losses(*(t[part].cpu().numpy() for t in (tokens, document, scored)))
            flat = out[:, part].reshape(self.max_order + 1, -1)
            flat[:, torch.from_numpy(place)] = torch.from_numpy(losses).float()
            out[:, part] = flat.reshape(self.max_order + 1, -1, tokens.shape[1])
        return out

    def _losses(self, tokens: np.ndarray, document: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = np.zeros_like(scored)
        last[:, :-1] = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        if (scored & ~last).any():
            row, column = np.argwhere(scored & ~last)[0]
            raise BadData(f"Row {row}, place {column} is scored but its next token is absent or of another document.")
        token = tokens.reshape(-1).astype(np.int64)
        _check_ids(token[document.reshape(-1) >= 0], self.n_vocab)
        starts = np.broadcast_to(np.arange(tokens.shape[1]) == 0, tokens.shape).reshape(-1)
        position = _position(document.reshape(-1), starts)
        place = np.flatnonzero(scored.reshape(-1))
        ngram, target = token.clip(0, self.n_vocab - 1), token[place + 1]
        nowhere = np.zeros(len(place), np.int64)
        uniform = np.full(len(place), 1 / self.n_vocab)
        top = self._raw[0].applied(target, nowhere, uniform)
        losses = [np.full(len(place), log(self.n_vocab)), -np.log(top)]
        below = self._continued[0].applied(target, nowhere, uniform) if self.max_order > 1 else uniform
        for order in range(2, self.max_order + 1):
            context, ngram = ngram, self._extended(order, ngram, token, position)
            h, hw = context[place], ngram[place + 1]
            fits = position[place] >= order - 2
            h = np.where(fits, h, -1)
            top = np.where(fits, self._raw[order - 1].applied(hw, h, below), top)
            losses.append(-np.log(top))
            if order < self.max_order:
                below = self._continued[order - 1].applied(hw, h, below)
        return place, np.stack(losses)

    def _extended(self, order: int, shorter: np.ndarray, token: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Index of the n-gram of this order that ends at each place, -1 where it was never seen or does not fit."""
        known, found = self._keys[order - 2], np.full(len(token), -1, np.int64)
        at = np.flatnonzero((position[1:] >= order - 1) & (shorter[:-1] >= 0)) + 1
        if len(known) == 0 or len(at) == 0:
            return found
        wanted = shorter[at - 1] * self.n_vocab + token[at]
        by_key = np.argsort(wanted)  # sorted look-ups walk the table once instead of missing the cache each time
        at, wanted = at[by_key], wanted[by_key]
        index = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        found[at] = np.where(known[index] == wanted, index, -1)
        return found


def equivalent_ngram(
    bootstrap: Bootstrap,
    loss: Shaped[np.ndarray, " n_seq"],
    loss_by_order: Shaped[np.ndarray, "orders n_seq"],
    counts: Shaped[np.ndarray, " n_seq"],
) -> Metric:
    """The order of the n-gram model that would predict as well: 0 uniform, 1 unigram, 2.4 between bigram and trigram.

    loss, loss_by_order: sums in nats over the same `counts` places of each sequence. Linear in the loss between orders;
    an order that is worse than a lower one counts as that lower one. NotMeasured where the loss is below the best
    order's (with the distance in nats) or above the uniform model's; resamples that fall outside count as the ends.
    """
    if loss_by_order.shape != (len(loss_by_order), len(loss)) or len(loss_by_order) < 2:
        raise WrongShape(f"loss_by_order {loss_by_order.shape} must be [at least 2 orders, {len(loss)} sequences].")
    n, last = bootstrap.units(counts), len(loss_by_order) - 1
    if n < 2:
        return bootstrap.summarise(np.zeros(1), "order", n)
    s = bootstrap.sums(loss=loss, orders=loss_by_order.T, counts=counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = s["loss"] / s["counts"]
        steps = np.minimum.accumulate(s["orders"] / s["counts"][:, None], axis=1)
    if (better := steps[0, -1] - reached[0]) > 0:
        return NotMeasured(not_measured=f"better than every n-gram model: {better:.3g} nats below order {last}")
    if (worse := reached[0] - steps[0, 0]) > 0:
        return NotMeasured(not_measured=f"worse than a uniform guess by {worse:.3g} nats")
    upper = (steps > reached[:, None]).sum(1).clip(1, last)
    rows = np.arange(len(steps))
    above, under = steps[rows, upper - 1], steps[rows, upper]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(reached >= above, 0, np.where(reached <= under, 1, (above - reached) / (above - under)))
    draws = np.where(np.isfinite(reached), upper - 1 + part, np.nan)
    return bootstrap.summarise(draws, "order", n)


def _discounts(counts: Int[np.ndarray, " ngrams"]) -> Float[np.ndarray, " 4"]:
    """What is taken from counts 0, 1, 2 and 3 or more (Chen and Goodman, equation 26), never all of it, never nothing.

    Where too few n-grams occur so rarely to estimate it, half a count: something must be left for the unseen.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)  # how many occur 0, 1, ... 5 or more times
    discounts = np.array([0.0, 0.5, 0.5, 0.5], np.float32)
    if n[1] > 0 and n[2] > 0:
        y = n[1] / (n[1] + 2 * n[2])
        for c in (1, 2, 3):
            if n[c] > 0:
                discounts[c] = np.clip(c - (c + 1) * y * n[c + 1] / n[c], 0.05, c - 0.05)
    return discounts


def _position(document: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """How many tokens of the same document precede each, since its start or the nearest forced one."""
    at = np.arange(len(document))
    begins = np.diff(document, prepend=document[:1] - 1) != 0
    if starts is not None:
        begins |= starts
    return at - np.maximum.accumulate(np.where(begins, at, 0))


def _check_ids(token: np.ndarray, n_vocab: int) -> None:
    if len(token) and (token.min() < 0 or token.max() >= n_vocab):
        raise BadData(f"Token ids run from {token.min()} to {token.max()}, outside a vocabulary of {n_vocab}.")
