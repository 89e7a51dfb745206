"""The sequences and the places that lose most, with their text."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from understudy.core.network import Network
from understudy.core.records.holes import EVERYWHERE, LostToken, WorstPlace, WorstSequence
from understudy.workflows._holes.cells import Part
from understudy.workflows._holes.passes import CLEAN, PlaceLosses

BEFORE = 12
"""Tokens of text shown before one of the worst places."""


def worst_sequences(
    losses: PlaceLosses, network: Network, ids: Tensor | None, picked: Tensor, n: int
) -> list[WorstSequence]:
    """The sequences with the largest mean excess loss, worst first."""
    counts = losses.scored.sum(1)
    means = np.where(counts > 0, losses.lost(EVERYWHERE).sum(1) / np.maximum(counts, 1), -np.inf)
    order = [int(i) for i in np.argsort(-means)[:n] if counts[i]]
    return [
        WorstSequence(
            sequence=int(picked[i]), places=int(counts[i]), delta_loss=float(means[i]),
            tokens=_tokens(losses, network, ids, i) if ids is not None else [],
        )
        for i in order
    ]  # fmt: skip


def worst_places(
    losses: PlaceLosses, network: Network, ids: Tensor | None, parts: Sequence[Part], n: int
) -> list[WorstPlace]:
    """The places with the largest excess loss. Empty for networks that read no tokens."""
    if ids is None:
        return []
    lost = np.where(losses.scored, losses.lost(EVERYWHERE), -np.inf)
    out = []
    for flat in np.argsort(-lost, axis=None)[:n]:
        i, t = (int(x) for x in np.unravel_index(flat, lost.shape))
        before = network.tokenizer.decode(ids[i, max(0, t + 1 - BEFORE) : t + 1].tolist())
        named = [part.slice for part in parts if part.where[i, t]]
        out.append(WorstPlace(before=before, token=_token(losses, network, ids, i, t), position=t, slices=named))
    return out


def _tokens(losses: PlaceLosses, network: Network, ids: Tensor, i: int) -> list[LostToken]:
    """Every token of a row, with what predicting it from those before lost."""
    first = LostToken(text=network.tokenizer.decode([int(ids[i, 0])]), lost=0.0, clean=0.0)
    return [first, *(_token(losses, network, ids, i, t) for t in range(ids.shape[1] - 1))]


def _token(losses: PlaceLosses, network: Network, ids: Tensor, i: int, t: int) -> LostToken:
    """The token that place t predicts."""
    text = network.tokenizer.decode([int(ids[i, t + 1])])
    return LostToken(text=text, lost=float(losses.lost(EVERYWHERE)[i, t]), clean=float(losses.nats[CLEAN][i, t]))
