"""Replacement: groups run in the network's place, under a policy that says what the figures are evidence of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Context, Dictionary, Group, check_writes
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.errors import AcausalReplacement, AmbiguousWrite, NeedsRecording, UnknownName, WrongShape
from understudy.core.site import Site

EditLatents = Callable[[Latents], Latents]
"""Changes a dictionary's latents: pruning, ablating, clamping and steering are edits."""
Key = tuple[Site, int]
"""A site and the call it is read at; 0 unless its module is called over time."""


@dataclass(frozen=True)
class Policy:
    """What happens to what the dictionaries miss, and how they write. See `docs/guide/policies.md` for the table."""

    errors: Literal["dropped", "measured"] = "dropped"
    """`measured` adds the errors of a clean pass on the same input: a test of the plumbing, not of understanding."""
    write: Literal["replace", "delta"] = "replace"
    """`delta` leaves the network in place and adds only what an edit changes."""

    @property
    def needs_recording(self) -> bool:
        return self.errors == "measured"

    @property
    def is_evidence(self) -> bool:
        """May a figure under this policy stand in a headline? Only if the replacement stands alone."""
        return self.write == "replace" and not self.needs_recording


STANDALONE = Policy()
MEASURED_ERRORS = Policy(errors="measured")
INTERVENE = Policy(write="delta")


@dataclass(frozen=True)
class Recording:
    """A clean pass over one batch: activations, latents and errors at every call."""

    acts: Mapping[Key, Tensor]
    latents: Mapping[tuple[Dictionary, int], Latents]
    errors: Mapping[Key, Tensor]


@dataclass(frozen=True)
class Run:
    """What came out, and the latents that were used: `latents[dictionary]` is one Latents a call."""

    output: Any
    latents: Mapping[Dictionary, list[Latents]]


class Replacement:
    """Groups of dictionaries in a network's place.

    Everything kept with measured errors equals the network to rounding. Raises AmbiguousWrite if two groups write one
    site, under one name or two; AcausalReplacement if a dictionary must write before it has read; NeedsRecording for
    policies that lack one.
    """

    def __init__(self, network: Network, groups: Sequence[Group], skip_first: int = 0) -> None:
        """skip_first: places at the start of every sequence that keep the network's own activations, whatever the
        batch's mask says; where a cache holds earlier places, the sequence does not start anew."""
        check_writes(groups)
        self.network, self.groups, self.skip_first = network, tuple(groups), skip_first
        self._check_names()
        self.sites = tuple(dict.fromkeys(s for g in groups for s in (*g.reads, *g.writes)))
        network.probe(self.sites)

    def _check_names(self) -> None:
        """Raises AmbiguousWrite for two groups that write one tensor under two names."""
        if len(self.groups) < 2:
            return
        owner = {site: group for group in self.groups for site in group.writes}
        for first, second in self.network.same_tensor(owner):
            if owner[first] is not owner[second]:
                raise AmbiguousWrite(
                    f"{first} and {second} are two names of one tensor, and two groups write it: the later would undo "
                    "the earlier. Leave one out, or put dictionaries that are summed into one Group at one site."
                )

    def run(
        self,
        batch: Batch,
        policy: Policy = STANDALONE,
        recording: Recording | None = None,
        edits: Mapping[Dictionary, EditLatents] | None = None,
    ) -> Run:
        """One forward pass with the groups in place. Places that do not count keep the network's own activations."""
        if policy.needs_recording and recording is None:
            raise NeedsRecording(
                "this policy adds errors measured on a clean pass: pass recording=replacement.record(batch)."
            )
        self.network.prepare(batch)
        with self.installed(policy, recording, edits, batch) as state:
            output = self.network.forward(batch)
        return Run(output, state.latents_by_dictionary())

    def intervene(
        self, batch: Batch, edits: Mapping[Dictionary, EditLatents], recording: Recording | None = None
    ) -> Run:
        """The network itself, plus (edited - original latents) . atoms at every written site.

        Without a recording each dictionary uses the latents it first reads in this pass. An edit that changes nothing
        leaves the output bit-equal to the network's.
        """
        return self.run(batch, INTERVENE, recording, edits)

    @contextmanager
    def installed(
        self,
        policy: Policy = STANDALONE,
        recording: Recording | None = None,
        edits: Mapping[Dictionary, EditLatents] | None = None,
        batch: Batch | None = None,
    ) -> Iterator["_Pass"]:
        """Every forward pass inside runs replaced, `generate` included."""
        self._check_edits(edits or {})
        mask, inputs = (None, {}) if batch is None else (batch.mask, batch.inputs)
        state = _Pass(self, policy, recording, edits or {}, mask, inputs)
        begin = self.network.module.register_forward_pre_hook(
            lambda m, args, kwargs: state.begin({**inputs, **kwargs}), with_kwargs=True
        )
        # A site that is only read needs no edit of its own when it is written too; one hook a site serves both.
        inside = {s: partial(state.visit, s) for s in self.sites if not s.is_input}
        try:
            with self.network.edited(inside):
                yield state
        finally:
            begin.remove()

    def _check_edits(self, edits: Mapping[Dictionary, EditLatents]) -> None:
        members = [m for g in self.groups for m in g.members]
        for key in edits:
            if key not in members:
                hint = " A group is edited through its members." if isinstance(key, Group) else ""
                raise UnknownName(
                    f"an edit is keyed by {key}, which is not among the dictionaries here: {members}.{hint}"
                )

    @torch.no_grad()
    def record(self, batch: Batch) -> Recording:
        """A clean pass: what every dictionary reads, finds and misses."""
        values = self.network.record_calls(batch, self.sites)
        acts: dict[Key, Tensor] = {}
        for site, calls in values.items():
            for call, value in enumerate(calls):
                acts[site, call] = value if site.is_input else self.network.rows(site, value, batch.n_sequences)
        latents: dict[tuple[Dictionary, int], Latents] = {}
        errors: dict[Key, Tensor] = {}
        for group in self.groups:
            for call in range(max(len(values[s]) for s in group.writes)):
                at = {s: acts.get((s, call), acts[s, 0]) for s in (*group.reads, *group.writes)}
                ctx = Context(batch.inputs, batch.mask, call, at)
                zs = [m.encode(at, ctx).z for m in group.members]
                latents |= {(m, call): z for m, z in zip(group.members, zs, strict=True)}
                errors |= {(s, call): at[s] - part for s, part in group.write(zs, at).items()}
        return Recording(acts, latents, errors)

    def __repr__(self) -> str:
        return f"Replacement of {self.network.name} at {', '.join(str(s) for g in self.groups for s in g.writes)}"


@dataclass
class _Pass:
    """The state of one forward pass: what was read, encoded and written so far."""

    of: Replacement
    policy: Policy
    recording: Recording | None
    edits: Mapping[Dictionary, EditLatents]
    mask: Tensor | None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    skip: int = 0
    """Places at the start of this forward pass that keep the network's own activations."""
    seen: dict[tuple[int, Site, int], Tensor] = field(default_factory=dict)
    latents: dict[tuple[Dictionary, int], Latents] = field(default_factory=dict)
    changes: dict[tuple[Dictionary, int], Latents] = field(default_factory=dict)
    written: dict[tuple[Dictionary, int], dict[Site, Tensor]] = field(default_factory=dict)

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        self.inputs = inputs
        first = self.of.skip_first
        self.skip = max(0, first - self.of.network.n_before(inputs)) if first else 0
        self.seen.clear()
        self.latents.clear()
        self.changes.clear()
        self.written.clear()

    @property
    def n_sequences(self) -> int:
        return next((len(v) for v in self.inputs.values() if isinstance(v, Tensor)), 0)

    def latents_by_dictionary(self) -> dict[Dictionary, list[Latents]]:
        out: dict[Dictionary, list[Latents]] = {}
        for (dictionary, _), z in sorted(self.latents.items(), key=lambda item: item[0][1]):
            out.setdefault(dictionary, []).append(z)
        return out

    def visit(self, site: Site, value: Tensor, n: int) -> Tensor:
        """Called where the network reaches a site: a group that writes it reads the raw value, others the new one."""
        network = self.of.network
        over_time = network.layout(site).calls == "time"
        call = n if over_time else 0
        raw = new = network.rows(site, value, self.n_sequences)
        for i, group in enumerate(self.of.groups):
            if site in group.writes:
                self.seen[i, site, call] = raw
                mask = self._mask(site, raw, n if over_time else None)
                new = _masked(mask, self._new_value(i, group, site, call, raw), raw)
        for i, group in enumerate(self.of.groups):
            if site in group.reads and site not in group.writes:
                self.seen[i, site, call] = new
        return value if new is raw else network.value(site, new)

    def _mask(self, site: Site, raw: Tensor, step: int | None) -> Tensor | None:
        """The places of one call that are written to; step: its place, where calls are places."""
        mask = self.mask if self.mask is None or step is None else self.mask[:, step]
        if self.skip == 0 or (step is not None and step >= self.skip):
            return mask
        if mask is None:
            mask = torch.ones(raw.shape[:-1], dtype=torch.bool, device=raw.device)
        if step is not None:
            return torch.zeros_like(mask)
        axis = self.of.network.layout(site).position_axis
        if axis is None:
            raise WrongShape(f"skip_first={self.of.skip_first}, but {site} has no axis of positions: set it to 0.")
        mask = mask.clone()
        mask.narrow(axis, 0, min(self.skip, mask.shape[axis])).fill_(False)
        return mask

    def _new_value(self, i: int, group: Group, site: Site, call: int, raw: Tensor) -> Tensor:
        writers = group.writers(site)
        if self.policy.write == "delta":
            changes = [(m, self._change(i, m, call)) for m in writers if m in self.edits]
            parts = [m.decode(d)[site] for m, d in changes if len(d.values)]
            return raw + sum(parts) if parts else raw
        new = sum(self._write(i, m, call)[site] for m in writers)
        new = group.add_bias({site: new})[site]  # pyright: ignore[reportArgumentType]
        if self.policy.errors == "measured":
            assert self.recording is not None
            new = new + self.recording.errors[site, call]
        return new

    def _write(self, i: int, member: Dictionary, call: int) -> dict[Site, Tensor]:
        if (member, call) not in self.written:
            acts = self._acts(i, member, call)
            z = member.encode(acts, self._context(call)).z
            z = self.edits.get(member, _unchanged)(z)
            self.latents[member, call] = z
            self.written[member, call] = member.write(z, acts)
        return self.written[member, call]

    def _change(self, i: int, member: Dictionary, call: int) -> Latents:
        """edited - original latents, once for each call."""
        if (member, call) not in self.changes:
            if self.recording is not None:
                z = self.recording.latents[member, call]
            else:
                z = member.encode(self._acts(i, member, call), self._context(call)).z
            self.latents[member, call] = self.edits[member](z)
            self.changes[member, call] = self.latents[member, call].minus(z)
        return self.changes[member, call]

    def _acts(self, i: int, member: Dictionary, call: int) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        for site in member.reads:
            if site.is_input:
                found[site] = self.inputs[site.port]
            elif (i, site, call) in self.seen or (i, site, 0) in self.seen:
                found[site] = self.seen.get((i, site, call), self.seen.get((i, site, 0)))  # pyright: ignore
            else:
                fix = (
                    "Pass recording=replacement.record(batch) to use the latents of a clean pass."
                    if self.policy.write == "delta"
                    else "Use it to analyse or to intervene (replacement.intervene with a recording), or train a "
                    "causal kind (clt, transcoder) to run."
                )
                raise AcausalReplacement(
                    f"{type(member).__name__} must write {', '.join(map(str, member.writes))} "
                    f"but still waits for {site}. {fix}"
                )
        return found

    def _context(self, call: int) -> Context:
        clean = None
        if self.recording is not None:
            clean = {s: v for (s, c), v in self.recording.acts.items() if c == call}
        return Context(self.inputs, self.mask, call, clean)


def _masked(mask: Tensor | None, new: Tensor, raw: Tensor) -> Tensor:
    """The new value at places that count, the network's own at the others."""
    if new is raw or mask is None or bool(mask.all()):
        return new
    if mask.shape != raw.shape[:-1]:
        raise WrongShape(
            f"a mask of {tuple(mask.shape)} does not say which of the places {tuple(raw.shape[:-1])} count: leave "
            "padded sequences out, or pass a mask with the site's places."
        )
    return torch.where(mask[..., None], new.to(raw.dtype), raw)


def _unchanged(z: Latents) -> Latents:
    return z
