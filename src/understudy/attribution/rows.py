"""Rows: the edges into latents and targets, by batched backward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.attribution.local import Leaves, LocalPass, Seen
from understudy.attribution.prefixes import Prefixes
from understudy.attribution.sources import Event, Sources
from understudy.core.records.graph import TargetCard

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")

Pass = tuple[Seen, Leaves]
Cotangents = Callable[[Seen], tuple[list[Tensor], list[Tensor]]]
"""From a pass to values of it, and for each the gradients [b, *shape] that b rows give it."""


@dataclass(frozen=True)
class Target:
    """A scalar of the output, or of what is read, that a graph explains. `value` must be linear in its argument."""

    card: TargetCard
    value: Callable[[Seen], Tensor]
    place: int = -1
    """Flat place of the output that it is a part of; -1 where it is none."""


@dataclass
class Engine:
    """Edges of a local pass. `passes`: live passes over which gradients are averaged - one where the network is frozen,
    several along the path from nothing to the input where it is not (integrated gradients)."""

    local: LocalPass
    sources: Sources
    passes: Sequence[Pass]
    nothing: Seen
    """A pass from zero leaves: what is left there are the network's own constants."""
    frozen: bool = True
    batch: int = 128
    """Rows in one backward pass; halved where memory runs out."""
    largest: dict[str, float] = field(default_factory=lambda: {"value": 0.0, "row_sum": 0.0})
    """Largest |value|, and largest |sum of a row - value|, so far."""

    def __post_init__(self) -> None:
        self._prefixes = Prefixes(self.local) if self.frozen else None

    @property
    def largest_so_far(self) -> Float[Tensor, "2"]:
        return torch.tensor([self.largest["value"], self.largest["row_sum"]], dtype=torch.float64)

    def seen_before(self, largest: Float[Tensor, "2"]) -> None:
        """Count rows that were made earlier too."""
        for name, value in zip(("value", "row_sum"), largest.tolist(), strict=True):
            self.largest[name] = max(self.largest[name], value)

    def event(self, event: Event, chosen: Int[Tensor, " m"]) -> Float[Tensor, "m n"]:
        """Edges into some latents of an event."""
        constants = self.sources.values(event, self.nothing, chosen)
        clean = self.sources.values(event, self.local.clean, chosen)
        return self._checked(self._batched(lambda part: self._latent_rows(event, part), chosen), constants, clean)

    def targets(self, targets: Sequence[Target]) -> Float[Tensor, "m n"]:
        """Edges into targets."""
        constants = torch.stack([t.value(self.nothing) for t in targets])
        clean = torch.stack([t.value(self.local.clean) for t in targets])
        which = torch.arange(len(targets))
        return self._checked(self._batched(lambda part: self._target_rows(targets, part), which), constants, clean)

    def _checked(self, rows: Tensor, constants: Tensor, clean: Tensor) -> Tensor:
        rows[:, self.sources.constants] += constants.detach().float()
        clean = clean.detach().double()
        if len(clean):
            error = (rows.sum(1, dtype=torch.float64) - clean).abs().max()
            self.largest["row_sum"] = max(self.largest["row_sum"], float(error))
            self.largest["value"] = max(self.largest["value"], float(clean.abs().max()))
        return rows

    def _batched(self, rows: Callable[[Tensor], Tensor], chosen: Tensor) -> Tensor:
        """All rows, `batch` at a time; where memory runs out, half as many and again."""
        out, at = torch.zeros(len(chosen), self.sources.n), 0
        while at < len(chosen):
            part = chosen[at : at + self.batch]
            try:
                out[at : at + len(part)] = rows(part)
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self.batch = len(part) // 2
                continue
            at += len(part)
        return out

    def _latent_rows(self, event: Event, part: Tensor) -> Tensor:
        places = event.z.rows[part]

        def cotangents(seen: Seen) -> tuple[list[Tensor], list[Tensor]]:
            reads, given = [], []
            for site, rows in event.linear.rows.items():
                x = seen.reads[event.group, self.local.slot_of(site, event.call)]
                if not x.requires_grad:
                    continue
                flat = x.new_zeros(len(part), x.numel() // x.shape[-1], x.shape[-1])
                flat[torch.arange(len(part)), places] = rows[event.linear.which[part]].to(x.dtype).detach()
                reads.append(x)
                given.append(flat.reshape(len(part), *x.shape))
            return reads, given

        last = int(places.max())
        return self._mean_rows(cotangents, len(part), [self._prefixes.up_to(last)] if self._prefixes else self.passes)

    def _target_rows(self, targets: Sequence[Target], part: Tensor) -> Tensor:
        def cotangents(seen: Seen) -> tuple[list[Tensor], list[Tensor]]:
            values = torch.stack([targets[int(i)].value(seen) for i in part])
            return ([values], [torch.eye(len(part), dtype=values.dtype)]) if values.requires_grad else ([], [])

        return self._mean_rows(cotangents, len(part), self.passes)

    def _mean_rows(self, cotangents: Cotangents, m: int, passes: Sequence[Pass]) -> Tensor:
        total = torch.zeros(m, self.sources.n)
        for seen, leaves in passes:
            reads, given = cotangents(seen)
            if not reads:
                continue
            slots = list(leaves)
            grads = torch.autograd.grad(
                reads, [leaves[s] for s in slots], given, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
            found = {s: g for s, g in zip(slots, grads, strict=True) if g is not None}
            if found:
                total += self.sources.contract(found)
        return total / len(passes)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, MemoryError) or any(said in str(error).lower() for said in OUT_OF_MEMORY)
