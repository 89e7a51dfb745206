"""Sources: everything that adds to a value on one input - inputs, biases, errors and latents - as columns of a row.

A row's columns stand in the order of computation: inputs, biases, errors (which nothing here computes), then latents in
the order in which their dictionaries read. Contracting the gradient of a read value with what each source wrote gives
its edges; for an affine network they sum to the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.local import LocalPass, Seen, Slot
from understudy.attribution.written import Written
from understudy.core.dictionary import Dictionary, Linearised
from understudy.core.graph import Nodes
from understudy.core.latents import Latents
from understudy.core.records.graph import KINDS
from understudy.core.site import Site

ELEMENTS = 1024
"""A floating input of at most this many numbers is one node a number; a larger one is one node a place."""


@dataclass(frozen=True)
class Event:
    """One dictionary at one call: the latents it finds there, and the rows that give them from what it reads."""

    group: int
    member: Dictionary
    call: int
    z: Latents
    linear: Linearised
    first: int
    """Column of its first latent."""

    def __len__(self) -> int:
        return len(self.z.values)

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + len(self))


class Sources:
    """Columns of every row for one local pass. `n` of them; `constants` is the column of the network's own biases."""

    def __init__(self, local: LocalPass, silent: int = 0) -> None:
        self.local = local
        self.slots = list(local.leaves)
        self.shapes = {slot: _grouping(slot, leaf) for slot, leaf in local.leaves.items()}
        self.inputs = [s for s in self.slots if s not in local.written]
        self.sites = list(dict.fromkeys(str(s.site) for s in self.slots))
        biased = list(dict.fromkeys(s.site for s in local.written))
        self.input_columns, at = {}, 0
        for slot in self.inputs:
            self.input_columns[slot] = slice(at, at + self.shapes[slot][0])
            at += self.shapes[slot][0]
        self.constants = at
        self.bias_columns = {site: at + 1 + i for i, site in enumerate(biased)}
        at += 1 + len(biased)
        self.error_columns = {}
        for slot in local.written:
            self.error_columns[slot] = slice(at, at + self.shapes[slot][0])
            at += self.shapes[slot][0]
        self.events: list[Event] = []
        for i, j, call in local.clean.events:
            member = local.groups[i].members[j]
            z = local.recording.latents[member, call]
            acts = local.acts(member, call)
            if silent:
                z = with_silent(member, acts, z, silent)
            z = _counted(z, local.batch.mask)
            linear = member.linearise(acts, z)
            self.events.append(Event(i, member, call, z, linear, at))
            at += len(z.values)
        self.n = at
        self._errors = {slot: self._error(slot) for slot in local.written}
        self._biases = {slot: self._rows(slot, local.constants(slot)).detach() for slot in local.written}
        self._written = {slot: self._written_at(slot) for slot in local.written}

    @property
    def n_bytes(self) -> int:
        """Memory of what was written, laid out for products."""
        return sum(4 * w.parts.numel() + 16 * len(w.at) for w in self._written.values())

    def _rows(self, slot: Slot, value: Tensor) -> Float[Tensor, "b p d"]:
        return value.reshape(-1, *self.shapes[slot])

    # -- what was written -------------------------------------------------------------------------------------------

    def _error(self, slot: Slot) -> Float[Tensor, "1 p d"]:
        """What the dictionaries missed at a slot: the leaf without latents and biases."""
        local = self.local
        total = local.leaves[slot].detach() - local.constants(slot)
        for event in self._writers(slot):
            total = total - event.member.decode(_on(event.z, event.member))[slot.site]
        return self._rows(slot, total).detach()

    def _writers(self, slot: Slot) -> list[Event]:
        owner = next(i for i, g in enumerate(self.local.groups) if slot.site in g.writes)
        return [
            e
            for e in self.events
            if e.group == owner and slot.site in e.member.writes and self.local.slot_of(slot.site, e.call) == slot
        ]

    def _written_at(self, slot: Slot) -> Written:
        places, columns, vectors = [], [], []
        error, bias = self._errors[slot][0], self._biases[slot].expand(1, *self.shapes[slot])[0]
        for event in self._writers(slot):
            z = _on(event.z, event.member)
            on = (z.values != 0).nonzero().squeeze(-1)
            unique, which = z.ids[on].unique(return_inverse=True)
            atoms = event.member.atoms(unique)[slot.site].detach()
            places.append(z.rows[on])
            columns.append(event.first + on)
            vectors.append((atoms[which] * z.values[on, None].detach()).float())
        nothing = torch.zeros(0, dtype=torch.long)
        return Written.of(
            error.float(),
            bias.float(),
            torch.cat([nothing, *places]),
            torch.cat([nothing, *columns]),
            torch.cat([torch.zeros(0, self.shapes[slot][1]), *vectors]),
        )

    def part(self, column: int) -> dict[Slot, Tensor]:
        """What one source wrote, in the shape of the leaves: subtract it from them to remove the source."""
        leaves, out = self.local.leaves, {}
        for slot, columns in self.input_columns.items():
            if columns.start <= column < columns.stop:
                out[slot] = self._only(slot, self._rows(slot, leaves[slot].detach()), column - columns.start)
        for slot, columns in self.error_columns.items():
            if columns.start <= column < columns.stop:
                out[slot] = self._only(slot, self._errors[slot], column - columns.start)
            if self.bias_columns[slot.site] == column:
                out[slot] = self._biases[slot].reshape(leaves[slot].shape)
        for event in self.events:
            if event.columns.start <= column < event.columns.stop:
                out |= self._latent_part(event, column - event.first)
        return out

    def _latent_part(self, event: Event, i: int) -> dict[Slot, Tensor]:
        """What one latent wrote where it is on."""
        value, out = _on(event.z, event.member).values[i].detach(), {}
        if not bool(value):
            return out
        for site, atoms in event.member.atoms(event.z.ids[i : i + 1]).items():
            slot = self.local.slot_of(site, event.call)
            if slot in self._errors:
                added = torch.zeros_like(self._errors[slot])
                added[0, event.z.rows[i]] = atoms[0].detach() * value
                out[slot] = added.reshape(self.local.leaves[slot].shape)
        return out

    def _only(self, slot: Slot, rows: Tensor, place: int) -> Tensor:
        """One place of what was written at a slot, in the leaf's shape."""
        kept = torch.zeros_like(rows)
        kept[:, place] = rows[:, place]
        return kept.reshape(self.local.leaves[slot].shape)

    # -- rows -------------------------------------------------------------------------------------------------------

    def contract(self, grads: dict[Slot, Tensor]) -> Float[Tensor, "b n"]:
        """Edges from the gradients [b, 1, ..., d] of b values at the leaves, or at the leaves of their first places;
        the constants' column stays 0."""
        b = len(next(iter(grads.values())))
        out = torch.zeros(b, self.n)
        for slot, raw in grads.items():
            grad = raw.reshape(b, -1, self.shapes[slot][1]).float()
            if slot in self.input_columns:
                first, n = self.input_columns[slot].start, grad.shape[1]
                leaf = self._rows(slot, self.local.leaves[slot].detach())[0, :n].float()
                out[:, first : first + n] += torch.bmm(grad.transpose(0, 1), leaf[:, :, None])[..., 0].T
                continue
            self._written[slot].edges(grad, out, self.error_columns[slot], self.bias_columns[slot.site])
        return out

    def values(self, event: Event, seen: Seen, chosen: Int[Tensor, " m"] | None = None) -> Float[Tensor, " m"]:
        """Pre-activation of every latent of an event, or of some, from what a pass read, its own bias included."""
        which = event.linear.which if chosen is None else event.linear.which[chosen]
        at = event.z.rows if chosen is None else event.z.rows[chosen]
        total = event.linear.bias[which]
        for site, rows in event.linear.rows.items():
            x = seen.reads[event.group, self.local.slot_of(site, event.call)]
            total = total + (x.reshape(-1, x.shape[-1])[at] * rows[which]).sum(-1)
        return total

    def nodes(self, targets: Float[Tensor, " t"], places: Sequence[int]) -> Nodes:
        """One node a column, then the targets, given by their values and the places of their outputs."""
        n = self.n + len(targets)
        ints = {name: torch.full((n,), -1) for name in ("dictionary", "latent", "place", "site")}
        kind, value, threshold = torch.zeros(n, dtype=torch.uint8), torch.zeros(n), torch.zeros(n)
        members = [m for g in self.local.groups for m in g.members]
        for slot, columns in (*self.input_columns.items(), *self.error_columns.items()):
            p = self.shapes[slot][0]
            kind[columns] = KINDS.index("input" if slot in self.input_columns else "error")
            ints["place"][columns] = torch.arange(p) + slot.call * p
            ints["site"][columns] = self.sites.index(str(slot.site))
            wrote = self._errors[slot] if slot in self._errors else self._rows(slot, self.local.leaves[slot].detach())
            value[columns] = wrote[0].norm(dim=-1).float()
        kind[self.constants : self.constants + 1 + len(self.bias_columns)] = KINDS.index("bias")
        for site, column in self.bias_columns.items():
            ints["site"][column] = self.sites.index(str(site))
            value[column] = max(float(b.norm(dim=-1).mean()) for s, b in self._biases.items() if s.site == site)
        for event in self.events:
            kind[event.columns] = KINDS.index("latent")
            ints["dictionary"][event.columns] = members.index(event.member)
            ints["latent"][event.columns] = event.z.ids
            inner = prod(event.z.shape)
            ints["place"][event.columns] = event.z.rows + event.call * inner
            ints["site"][event.columns] = self._site_index(event.member.reads[0])
            value[event.columns] = event.z.values.float()
            theta = getattr(getattr(event.member, "sparsity", None), "theta", None)
            threshold[event.columns] = -torch.inf if theta is None else theta[event.z.ids].float()
        kind[self.n :], value[self.n :] = KINDS.index("target"), targets
        ints["latent"][self.n :], ints["place"][self.n :] = torch.arange(len(targets)), torch.tensor(places)
        return Nodes(
            kind=kind, dictionary=ints["dictionary"].to(torch.int16), latent=ints["latent"].to(torch.int32),
            place=ints["place"].to(torch.int32), site=ints["site"].to(torch.int16), value=value, threshold=threshold,
        )  # fmt: skip

    def _site_index(self, site: Site) -> int:
        if str(site) not in self.sites:
            self.sites.append(str(site))
        return self.sites.index(str(site))


def with_silent(member: Dictionary, acts: dict[Site, Tensor], z: Latents, n: int) -> Latents:
    """z and, at each place, the n silent latents that came nearest to their threshold, at their pre-activation.

    Nearness is (threshold - pre-activation) / length of the encoder row. Only for kinds with per-latent thresholds.
    """
    theta = getattr(getattr(member, "sparsity", None), "theta", None)
    if theta is None or not isinstance(getattr(member, "W_enc", None), Tensor):
        return z
    pre = member.encode(acts).pre
    added_rows, added_ids, added = [], [], []
    norms = member.W_enc.norm(dim=-1).clamp(min=1e-8)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    for rows, block in pre.chunks():
        near = ((block - theta) / norms).masked_fill(block > theta, -torch.inf)
        ids = near.topk(min(n, near.shape[1]), dim=-1).indices
        added_rows.append((torch.arange(len(block)) + rows.start).repeat_interleave(ids.shape[1]))
        added_ids.append(ids.reshape(-1))
        added.append(block.gather(1, ids).reshape(-1))
    return z.put(torch.cat(added_rows), torch.cat(added_ids), torch.cat(added))


def _counted(z: Latents, mask: Tensor | None) -> Latents:
    """Without latents at places that do not count: there the network's own activation goes on, as an error node."""
    if mask is None or bool(mask.all()) or mask.numel() != len(z.offsets) - 1:
        return z
    return z.keep(mask.reshape(-1)[z.rows], by="occurrence")


def _on(z: Latents, member: Dictionary) -> Latents:
    """Without silent latents, whose values are pre-activations."""
    theta = getattr(getattr(member, "sparsity", None), "theta", None)
    return z if theta is None else z.with_values(torch.where(z.values > theta[z.ids], z.values, 0.0))


def _grouping(slot: Slot, leaf: Tensor) -> tuple[int, int]:
    """(places, d) of a leaf [1, *places, d]; a floating input counts its numbers, or where they are many its first
    axis."""
    if slot.site.is_input:
        return (leaf.numel(), 1) if leaf.numel() <= ELEMENTS else (leaf.shape[1], leaf[0, 0].numel())
    return leaf[0].numel() // leaf.shape[-1], leaf.shape[-1]
