"""Prefixes: in a causal network the edges into an early place are those of a shorter input, which costs less.

That the network is causal is not assumed: a prefix is used only if every value that is read in it equals that of the
whole input.
"""

from copy import copy
from dataclasses import dataclass, field, replace

from torch import Tensor

from understudy.attribution.frozen import Tape
from understudy.attribution.local import Leaves, LocalPass, Seen
from understudy.core.batch import Batch
from understudy.core.records.errors import UnderstudyError

SHARES = 8
"""Lengths of prefixes are multiples of this share of the input."""
SHORTEST = 16
TOLERANCE = 1e-4
"""Largest difference of what is read, relative to the largest value read there."""


@dataclass
class Prefixes:
    """Local passes over the first places of an input, made as they are needed."""

    local: LocalPass
    made: dict[int, tuple[Seen, Leaves] | None] = field(default_factory=dict)
    """By number of places; None: the network is not causal."""

    def up_to(self, place: int) -> tuple[Seen, Leaves]:
        """The shortest pass that has this place; the whole one where there is none shorter."""
        whole = self.local.clean, self.local.leaves
        n = places(self.local)
        step = max(SHORTEST, -(-n // SHARES))
        length = -(-(place + 1) // step) * step
        if length >= n or None in self.made.values():
            return whole
        if length not in self.made:
            self.made[length] = prefix(self.local, length)
        return self.made[length] or whole


def places(local: LocalPass) -> int:
    """Places of an input of token ids with one axis of places, at which every leaf and read lies; else 0."""
    inputs = list(local.batch.inputs.values())
    if any(v.dim() != 2 or v.is_floating_point() or v.shape != inputs[0].shape for v in inputs):
        return 0
    n = inputs[0].shape[1]
    values = [*local.leaves.values(), *local.clean.reads.values()]
    return n if all(v.dim() == 3 and v.shape[:2] == (1, n) for v in values) else 0


def prefix(local: LocalPass, n: int) -> tuple[Seen, Leaves] | None:
    """The pass over the first n places, or None where what is read there depends on later ones, or where the network
    takes no shorter input."""
    short = copy(local)
    short.batch, short.tape = _cut(local.batch, n), Tape()
    leaves = {slot: v.detach()[:, :n].clone().requires_grad_() for slot, v in local.leaves.items()}
    try:
        seen = short.run(leaves)
    except (RuntimeError, ValueError, IndexError, UnderstudyError):  # made for one length: the whole pass ran before
        return None
    short.tape.forget_unreached(set())
    same = all(_close(seen.reads.get(key), value.detach()[:, :n]) for key, value in local.clean.reads.items())
    return (seen, leaves) if same else None


def _close(found: Tensor | None, wanted: Tensor) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return bool((found.detach() - wanted).abs().max() <= TOLERANCE * max(scale, 1e-30)) if wanted.numel() else True


def _cut(batch: Batch, n: int) -> Batch:
    def short(x: Tensor | None) -> Tensor | None:
        return x[:, :n] if x is not None and x.dim() > 1 else None

    inputs = {k: v[:, :n] for k, v in batch.inputs.items()}
    return replace(batch, inputs=inputs, mask=short(batch.mask), targets=None, tags={})
