"""The features a report shows: latents drawn at random from those that fired, with the places they answer to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Context, Dictionary
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.core.records.scorecard import Context as Shown
from understudy.core.records.scorecard import Feature, Image
from understudy.data import Order
from understudy.workflows._reporting.pictures import Pictures
from understudy.workflows._reporting.texts import Texts
from understudy.workflows.evaluate import SavedRun

BANDS = (("top", 0.99, 1.0), ("90-99%", 0.9, 0.99), ("50-90%", 0.5, 0.9), ("0-50%", 0.0, 0.5))
PER_BAND, BATCH = 3, 16
Where = Sequence[tuple[Tensor, Tensor]]


class Shows(Protocol):
    """How the places of a kind of input are shown."""

    def add(self, batch: Batch) -> None:
        """Keep what is needed of a batch."""
        ...

    def counted(self, shape: tuple[int, ...]) -> Tensor | None:
        """Which places of a dictionary count, flat; None: all do. shape: the places of one sequence."""
        ...

    def context(self, band: str, place: int, shape: tuple[int, ...], at: dict[int, float]) -> Shown:
        """The surroundings of a place; at: activation of the latent by place, over all sequences."""
        ...

    def about(self, member: Dictionary, chosen: Sequence[int], where: Where, shape: tuple[int, ...]) -> list[dict]:
        """More fields of each latent's Feature. where: of each latent its places and its values there."""
        ...

    def images(self) -> list[Image]:
        """The pictures that contexts point to, once all are made."""
        ...


@dataclass
class Found:
    """Where a dictionary's latents fired over the searched sequences: parallel lists over occurrences."""

    latent: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    place: list[Tensor] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    """Places of one sequence."""

    def add(self, z: Latents, first: int) -> None:
        """first: number of the batch's first sequence."""
        self.shape = tuple(z.shape[1:])
        on = z.values > 0
        self.latent.append(z.ids[on].cpu())
        self.value.append(z.values[on].cpu())
        self.place.append((z.rows[on] + first * prod(self.shape)).cpu())


def shower(network: Network) -> Shows | None:
    """How this network's places are shown; None where there is no way."""
    if network.tokenizer is not None:
        return Texts(network)
    return None if network.picture is None else Pictures(network)


def features(
    run: SavedRun, sequences: Sequences, n_features: int, n_sequences: int, seed: int, progress: Progress
) -> tuple[dict[str, list[Feature]], list[Image]]:
    """By the first written site of each member. Empty for networks whose inputs are neither text nor pictures."""
    shows = shower(run.network)
    if shows is None:
        return {}, []
    picked = Order(len(sequences), seed + 1).stream(0, min(n_sequences, len(sequences)))
    members = [m for g in run.groups for m in g.members]
    found = [Found() for _ in members]
    with progress.task("finding contexts", len(picked), "sequences") as task:
        for i in range(0, len(picked), BATCH):
            batch = sequences.batch(picked[i : i + BATCH])
            there = batch.to(run.network.device)
            acts = run.network.record(there, [s for g in run.groups for s in g.reads])
            shows.add(batch)
            for f, member in zip(found, members, strict=True):
                f.add(member.encode(acts, Context(there.inputs, there.mask)).z, i)
            task.update(i + len(picked[i : i + BATCH]))
    described = {
        str(member.writes[0]): _describe(member, f, shows, n_features, len(picked), seed)
        for member, f in zip(members, found, strict=True)
    }
    return described, shows.images()


def _describe(
    member: Dictionary, found: Found, shows: Shows, n_features: int, n_sequences: int, seed: int
) -> list[Feature]:
    latent, value, place = torch.cat(found.latent), torch.cat(found.value), torch.cat(found.place)
    n_places, counted = n_sequences * prod(found.shape), shows.counted(found.shape)
    if counted is not None:
        inside = counted[place]
        latent, value, place, n_places = latent[inside], value[inside], place[inside], int(counted.sum())
    fired = latent.unique()
    generator = torch.Generator().manual_seed(seed)
    chosen = fired[torch.randperm(len(fired), generator=generator)[:n_features]].tolist()
    where = [(place[latent == i], value[latent == i]) for i in chosen]
    about = shows.about(member, chosen, where, found.shape)
    out = [
        Feature(
            dictionary=str(member.writes[0]), latent=i, density=len(v) / n_places, maximum=float(v.max()),
            contexts=_contexts(v, p, shows, found.shape, generator), **more,
        )
        for i, (p, v), more in zip(chosen, where, about, strict=True)
    ]  # fmt: skip
    return sorted(out, key=lambda f: -f.density)


def _contexts(
    value: Tensor, place: Tensor, shows: Shows, shape: tuple[int, ...], generator: torch.Generator
) -> list[Shown]:
    """Up to three places of each band of the latent's own activations, drawn at random within the band."""
    at = dict(zip(place.tolist(), value.tolist(), strict=True))
    ranked = place[value.argsort(descending=True)].tolist()
    out, last = [], 0
    for band, low, high in BANDS:
        first, last = last, max(last, int(round((1 - low) * len(ranked), 9)), 1 if high == 1 else 0)
        members = ranked[first:last]
        chosen = torch.randperm(len(members), generator=generator)[:PER_BAND].tolist()
        out += [shows.context(band, members[c], shape, at) for c in sorted(chosen)]
    return out
