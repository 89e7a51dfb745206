"""Local pass: one input through a network whose dictionaries' writes are leaves, everything between them affine.

At every written site the network goes on from a leaf: what the latents wrote, plus what they missed, plus biases. What
a dictionary computes from what it reads without its latents (a skip path) stays live. Leaves of the input are the
embedding, or the floating inputs themselves. Then every value that is read is an affine function of all leaves, with
errors as nodes, and equals the clean pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from understudy.attribution.frozen import Freeze, Rule, Tape, tensors
from understudy.attribution.rules import LINEAR, RULES
from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.network import Network
from understudy.core.records.errors import AcausalReplacement, BadInput
from understudy.core.replacement import Recording, Replacement
from understudy.core.site import Site


class Slot(NamedTuple):
    """One call of a site: what is read or written at once."""

    site: Site
    call: int


Leaves = Mapping[Slot, Tensor]


@dataclass
class Seen:
    """What one forward pass showed, live."""

    reads: dict[tuple[int, Slot], Tensor] = field(default_factory=dict)
    """What the members of group i read at a slot, [1, *places, d]."""
    events: list[tuple[int, int, int]] = field(default_factory=list)
    """(group, member, call) in the order in which dictionaries had read all they read."""
    output: Any = None


class LocalPass:
    """A network, its groups and one input, ready to be run from leaves.

    Raises BadInput for more than one sequence, a network that is not on the CPU, and rules under which latents
    compete; AcausalReplacement for a dictionary that must write before it has read; UnknownOperation.
    """

    def __init__(
        self, network: Network, groups: Sequence[Group], batch: Batch, rules: Mapping[str, Rule] | None = None
    ) -> None:
        if batch.n_sequences != 1:
            raise BadInput(
                f"a graph is made for one input; this batch has {batch.n_sequences} along axis 0. Pass one "
                "(batch[:1]); wrap a network whose inputs have time in front in a module that puts the batch there."
            )
        if network.device.type != "cpu":
            raise BadInput(f"{network.name} is on {network.device}; graphs are made on the CPU: network.to('cpu').")
        self.network, self.groups, self.batch = network, tuple(groups), batch
        self.rules = {**RULES, **(rules or {})}
        check_thresholded(groups)
        self.replacement = Replacement(network, groups)
        self.input_sites = input_sites(network, batch)
        self.tape = Tape()
        self._owner = {s: i for i, g in enumerate(groups) for s in g.writes}
        self._readers = {s: [i for i, g in enumerate(groups) if s in g.reads] for g in groups for s in g.reads}
        self.recording = self._record()
        self.leaves = self._leaves()
        self.clean = self.run(self.leaves)
        self.tape.forget_unreached(_behind([*self.clean.reads.values(), *tensors(self.clean.output)]))

    # -- the clean pass ---------------------------------------------------------------------------------------------

    def _record(self) -> Recording:
        recording = self.replacement.record(self.batch)
        inside = [s for s in self.input_sites if not s.is_input and (s, 0) not in recording.acts]
        if not inside:
            return recording
        calls = self.network.record_calls(self.batch, inside)
        acts = {(s, c): self.network.rows(s, v, 1) for s, found in calls.items() for c, v in enumerate(found)}
        return replace(recording, acts={**recording.acts, **acts})

    def acts(self, member: Dictionary, call: int) -> dict[Site, Tensor]:
        """What a dictionary reads in the clean pass."""
        found = self.recording.acts
        return {s: found.get((s, call), found.get((s, 0))) for s in member.reads}  # pyright: ignore[reportReturnType]

    def _leaves(self) -> dict[Slot, Tensor]:
        leaves: dict[Slot, Tensor] = {}
        for site in self.input_sites:
            value = self.batch.inputs[site.port] if site.is_input else self.recording.acts[site, 0]
            leaves[Slot(site, 0)] = value.detach().clone()
        for (site, call), value in self.recording.acts.items():
            if site in self._owner:
                group = self.groups[self._owner[site]]
                leaves[Slot(site, call)] = value.detach() - self._live_part(group, site, self._group_acts(group, call))
        return {slot: value.requires_grad_() for slot, value in leaves.items()}

    def _group_acts(self, group: Group, call: int) -> dict[Site, Tensor]:
        return {s: v for m in group.members for s, v in self.acts(m, call).items()}

    @staticmethod
    def _live_part(group: Group, site: Site, acts: Mapping[Site, Tensor]) -> Tensor | float:
        """What the group writes besides latents and constants: rest(acts) - rest(0), a linear map of what it reads."""
        parts: list[Tensor] = []
        for member in group.writers(site):
            if getattr(member, "W_skip", None) is None and not getattr(member, "has_live_rest", False):
                continue
            own = {s: acts[s] for s in member.reads}
            nothing = {s: torch.zeros_like(v) for s, v in own.items()}
            parts.append(member.rest(own)[site] - member.rest(nothing)[site])
        return sum(parts[1:], parts[0]) if parts else 0.0

    def constants(self, slot: Slot) -> Tensor:
        """What the owner of a written slot adds whatever it reads: its biases, [1, *places, d]."""
        group = self.groups[self._owner[slot.site]]
        out: dict[Site, Tensor] = {}
        for member in group.writers(slot.site):
            own = {s: torch.zeros_like(v) for s, v in self.acts(member, slot.call).items()}
            part = member.rest(own)[slot.site]
            out[slot.site] = out[slot.site] + part if out else part
        return group.add_bias(out)[slot.site]

    @property
    def written(self) -> list[Slot]:
        return [slot for slot in self.leaves if slot.site in self._owner]

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, leaves: Leaves, thawed: Sequence[str] = (), frozen: bool = True) -> Seen:
        """One forward pass from these leaves. frozen=False: no rule is followed, everything between leaves is live."""
        seen = Seen()
        inputs = {s.port: leaves[Slot(s, 0)] for s in self.input_sites if s.is_input}
        batch = replace(self.batch, inputs={**self.batch.inputs, **inputs})
        edits = {s: partial(self._visit, seen, leaves, s) for s in self._hooked()}
        with torch.enable_grad(), self.network.explicit(), self.network.edited(edits), self._frozen(thawed, frozen):
            seen.output = self.network.forward(batch)
        return seen

    @contextmanager
    def _frozen(self, thawed: Sequence[str], frozen: bool) -> Iterator[None]:
        if not frozen:
            yield
            return
        mode = Freeze(self.network.module, self.tape, self.rules, LINEAR, thawed)
        with mode.running():
            yield

    def _hooked(self) -> list[Site]:
        sites = [*self.replacement.sites, *self.input_sites]
        return [s for s in dict.fromkeys(sites) if not s.is_input]

    def _visit(self, seen: Seen, leaves: Leaves, site: Site, value: Tensor, n: int) -> Tensor:
        call = n if self.network.layout(site).calls == "time" else 0
        slot, network = Slot(site, call), self.network
        raw = new = network.rows(site, value, 1)
        owner = self._owner.get(site)
        if owner is not None and site in self.groups[owner].reads:
            self._see(seen, owner, slot, raw)
        if slot in leaves:
            new = leaves[slot]
            if owner is not None:
                group = self.groups[owner]
                new = new + self._live_part(group, site, self._live_acts(seen, owner, call, site))
        for i in self._readers.get(site, ()):
            if i != owner:
                self._see(seen, i, slot, new)
        return value if new is raw else network.value(site, new.to(raw.dtype))

    def _see(self, seen: Seen, i: int, slot: Slot, value: Tensor) -> None:
        seen.reads[i, slot] = value
        for j, member in enumerate(self.groups[i].members):
            last = slot.site in member.reads and all(
                (i, self.slot_of(s, slot.call)) in seen.reads for s in member.reads
            )
            if last:
                seen.events.append((i, j, slot.call))

    def _live_acts(self, seen: Seen, i: int, call: int, site: Site) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        for member in self.groups[i].writers(site):
            for s in member.reads:
                key = (i, self.slot_of(s, call))
                if key not in seen.reads:
                    raise AcausalReplacement(
                        f"{type(member).__name__} writes {site} before it has read {s}: its latents cannot be nodes of "
                        "a graph that is run. Use a causal kind (transcoder, clt, or an SAE at one site)."
                    )
                found[s] = seen.reads[key]
        return found

    def slot_of(self, site: Site, call: int) -> Slot:
        """The slot at which call `call` of a dictionary reads `site`: inputs and once-read sites have one."""
        over_time = not site.is_input and self.network.layout(site).calls == "time"
        return Slot(site, call if over_time else 0)


def _behind(values: Sequence[Tensor]) -> set[Any]:
    """Every autograd node that these values depend on."""
    todo, found = [v.grad_fn for v in values if v.grad_fn is not None], set()
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [n for n, _ in node.next_functions if n is not None]
    return found


def check_thresholded(groups: Sequence[Group]) -> None:
    """Raises BadInput for rules under which latents compete: a kept latent's value would depend on all others."""
    for group in groups:
        for member in group.members:
            rule = getattr(member, "sparsity", None)
            if rule is not None and not rule.is_thresholded:
                raise BadInput(
                    f"{member} uses {type(rule).__name__}, under which latents compete: a graph of some of them has no "
                    "meaning. Convert it: dictionary.thresholded(acts); finished runs are converted already."
                )


def input_sites(network: Network, batch: Batch) -> tuple[Site, ...]:
    """Where the input enters: the embedding where it has a name, else every floating input."""
    named = {row.name: row.site for row in network.named_sites()}
    if "embed" in named:
        return (named["embed"],)
    return tuple(Site("inputs", k) for k, v in batch.inputs.items() if v.is_floating_point())
