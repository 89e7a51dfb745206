"""Targets: what a graph explains - likely outputs, a difference of two, an output by number, a latent, a direction."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.attribution.local import LocalPass, Seen
from understudy.attribution.rows import Target
from understudy.attribution.sources import Event, Sources
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.graph import TargetCard
from understudy.core.site import Site

TOP_SHARE, MOST = 0.95, 10
"""Likely outputs: the fewest that hold this share of the probability, at most so many (Ameisen et al. 2025)."""


def scores(local: LocalPass, seen: Seen, place: int) -> Float[Tensor, " outputs"]:
    """The output's scores (logits) at a place, less their mean: a constant added to all changes nothing."""
    logits = local.network.scores(seen.output)[0]
    logits = logits.reshape(-1, logits.shape[-1])
    if not -len(logits) <= place < len(logits):
        raise BadInput(f"place {place} was asked for; the output has {len(logits)}.")
    return logits[place].float() - logits[place].float().mean()


def likely(local: LocalPass, place: int = -1, named: Callable[[int], str] | None = None) -> list[Target]:
    """The most likely outputs at a place, weighted by probability."""
    p = scores(local, local.clean, place).detach().softmax(-1)
    values, ids = p.sort(descending=True)
    n = min(MOST, len(p), int((values.cumsum(0) < TOP_SHARE).sum()) + 1)
    kept = values[:n] / values[:n].sum()
    return [
        output(local, int(i), place, name=_name(named, int(i), float(q)), weight=float(w), probability=float(q))
        for i, q, w in zip(ids[:n], values[:n], kept, strict=True)
    ]


def output(
    local: LocalPass, index: int, place: int = -1, name: str = "", weight: float = 1.0, probability: float | None = None
) -> Target:
    """One output's score at a place. Raises BadInput."""
    n = scores(local, local.clean, place).shape[-1]
    place = _place(local, place)
    if not 0 <= index < n:
        raise BadInput(f"output {index} was asked for; the network has {n}.")
    card = TargetCard(name=name or f"output {index}", weight=weight, output=index, probability=probability)
    return Target(card, lambda seen: scores(local, seen, place)[index], place)


def _place(local: LocalPass, place: int) -> int:
    """Counted from the front."""
    logits = local.network.scores(local.clean.output)[0]
    return place % (logits.numel() // logits.shape[-1])


def difference(local: LocalPass, plus: int, minus: int, place: int = -1, name: str = "") -> Target:
    """Score of one output less that of another."""
    card = TargetCard(name=name or f"output {plus} - output {minus}", weight=1.0)
    n = scores(local, local.clean, place).shape[-1]
    for index in (plus, minus):
        if not 0 <= index < n:
            raise BadInput(f"output {index} was asked for; the network has {n}.")
    place = _place(local, place)

    def value(seen: Seen) -> Tensor:
        found = scores(local, seen, place)
        return found[plus] - found[minus]

    return Target(card, value, place)


def latent(sources: Sources, event: Event, index: int, name: str) -> Target:
    """A latent's pre-activation, where it was found (index: its number in the event)."""
    return Target(TargetCard(name=name, weight=1.0), lambda seen: sources.values(event, seen)[index])


def direction(local: LocalPass, site: Site, vector: Float[Tensor, " d"], place: int, name: str = "") -> Target:
    """A direction of what some group reads at a site."""
    keys = [key for key in local.clean.reads if key[1].site == site]
    if not keys:
        raise UnknownName.among("site that is read", str(site), sorted({str(k[1].site) for k in local.clean.reads}))
    read = partial(_read, keys[0], vector, place)
    return Target(TargetCard(name=name or f"direction at {site}", weight=1.0), read)


def _read(key: tuple, vector: Tensor, place: int, seen: Seen) -> Tensor:
    x = seen.reads[key]
    return x.reshape(-1, x.shape[-1])[place].float() @ vector.to(torch.float32)


def _name(named: Callable[[int], str] | None, index: int, p: float) -> str:
    return f"{named(index)!r} (p={p:.3f})" if named is not None else f"output {index} (p={p:.3f})"
