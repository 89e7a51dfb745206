"""Interventions by name: several latents set or scaled at once, on the network itself, during generation too.

    intervene(replacement, batch, {"mlp.3/174": 0.0, "mlp.1/20@5": "x2"})

The network computes as it always does; at every written site (changed - original value) x atom is added.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName
from understudy.core.replacement import INTERVENE, Recording, Replacement, Run
from understudy.core.site import Site

Changes = Mapping[str, float | str]
"""`SITE/LATENT` or `SITE/LATENT@PLACES` to a value (`0.0` ablates), or to a factor (`x2` doubles, `x-1` turns round).

SITE: a part or site that the dictionary writes (`mlp.3`). PLACES: `5`, `5-9` or `5-`, counted from 0 in the sequence,
both ends included; without it every place.
"""
_KEY = re.compile(r"(?P<site>.+)/(?P<latent>\d+)(@(?P<first>\d+)(?P<on>-(?P<last>\d*))?)?")


@dataclass(frozen=True)
class _Change:
    latent: int
    first: int
    last: int | None
    """None: no end."""
    value: float
    is_factor: bool


@dataclass
class _Clock:
    """How many places of the sequence earlier forward passes have seen: with a cache each pass sees only new ones."""

    seen: int = 0


@dataclass(frozen=True)
class NamedEdit:
    """All changes of one dictionary, as one function of its latents."""

    changes: list[_Change] = field(default_factory=list)
    clock: _Clock = field(default_factory=_Clock)

    def __call__(self, z: Latents) -> Latents:
        for change in self.changes:
            z = self._apply(change, z)
        return z

    def _apply(self, change: _Change, z: Latents) -> Latents:
        here = self._places(change, z)
        if change.is_factor:
            mine = (z.ids == change.latent) & here[z.rows]
            return z.with_values(torch.where(mine, z.values * change.value, z.values))
        rows = here.nonzero().squeeze(-1)
        return z.put(rows, torch.full_like(rows, change.latent), torch.full(rows.shape, change.value).to(z.values))

    def _places(self, change: _Change, z: Latents) -> Tensor:
        """Which of z's rows the change is for."""
        n = len(z.offsets) - 1
        if change.first == 0 and change.last is None:
            return torch.ones(n, dtype=torch.bool, device=z.ids.device)
        if len(z.shape) < 2:
            raise UnderstudyError(
                "a module that is called for one place at a time does not say which: change the latent at every place."
            )
        per_sequence = n // max(1, z.shape[0])
        place = self.clock.seen + torch.arange(n, device=z.ids.device) % per_sequence
        inside = place >= change.first
        return inside if change.last is None else inside & (place <= change.last)


def named_edits(network: Network, groups: Sequence[Group], changes: Changes) -> dict[Dictionary, NamedEdit]:
    """Changes by name as edits of latents, several of one dictionary in the order given.

    Raises UnknownName for a site that no dictionary writes or a latent that it lacks, BadInput for what cannot be read.
    """
    edits: dict[Dictionary, NamedEdit] = {}
    clock = _Clock()
    for key, value in changes.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise BadInput(f"{key!r} is not a latent: write mlp.3/174, or mlp.3/174@5 for place 5, @5- from there on.")
        member = _member(network, groups, found["site"])
        latent = int(found["latent"])
        if latent >= member.n_latents:
            raise UnknownName(f"{key!r}: the latents of {found['site']} are numbered 0 to {member.n_latents - 1}.")
        first = int(found["first"] or 0)
        last = None if found["first"] is None or found["last"] == "" else int(found["last"] or first)
        number, is_factor = _value(key, value)
        edits.setdefault(member, NamedEdit([], clock)).changes.append(_Change(latent, first, last, number, is_factor))
    return edits


def _value(key: str, value: float | str) -> tuple[float, bool]:
    text = str(value).strip()
    is_factor = text.startswith("x")
    try:
        return float(text.removeprefix("x")), is_factor
    except ValueError:
        raise BadInput(f"{key}: {value!r} is neither a value (0, 1.5) nor a factor (x2, x-1).") from None


def _member(network: Network, groups: Sequence[Group], name: str) -> Dictionary:
    """The dictionary that belongs to a written site: the one that writes it first, else the only one that writes it."""
    known = {n.name: n.site for n in network.named_sites()} | {p.name: p.write for p in network.parts()}
    site = known.get(name) or Site.parse(name)
    writers = [m for g in groups for m in g.writers(site)]
    own = [m for m in writers if m.writes[0] == site] or writers
    if not own:
        named = {s: n for n, s in known.items()}
        written = [named.get(s, str(s)) for g in groups for s in g.writes]
        raise UnknownName.among("site that these dictionaries write", name, written)
    if len(own) > 1:
        raise UnknownName(f"{len(own)} dictionaries write {name}: pass the groups of one.")
    return own[0]


def intervene(replacement: Replacement, batch: Batch, changes: Changes, recording: Recording | None = None) -> Run:
    """One forward pass of the network with changed latents. An empty or idle change leaves the output bit-equal.

    recording: a clean pass whose latents the changes start from; needed where a dictionary writes before it has read
    (crosscoders). Raises as `named_edits` does.
    """
    edits = named_edits(replacement.network, replacement.groups, changes)
    return replacement.intervene(batch, edits, recording)


@contextmanager
def intervening(replacement: Replacement, changes: Changes) -> Iterator[None]:
    """Every forward pass inside runs with changed latents, `network.generate` included; places count the prompt."""
    network = replacement.network
    edits = named_edits(network, replacement.groups, changes)

    def look(module: Any, args: Any, inputs: Mapping[str, Any]) -> None:
        for edit in edits.values():
            edit.clock.seen = network.n_before(inputs)

    watch = network.module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with replacement.installed(INTERVENE, edits=edits):
            yield
    finally:
        watch.remove()
