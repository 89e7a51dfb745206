"""Batch: what a network is run on, and which of its places count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, with one mask that every arm of a comparison shares."""

    inputs: Mapping[str, Tensor]
    """Keyword arguments of the module's forward, e.g. `input_ids` of shape [batch, pos]."""
    mask: Bool[Tensor, " batch *places"] | None = None
    """True at real places; None means all are real. Padding, and what the user excludes, is False."""
    targets: Int[Tensor, " batch *places"] | None = None
    """What the output at each place should be (next token, action, class); -100 where there is none."""
    tags: Mapping[str, Tensor] = field(default_factory=dict)
    """Other columns over places: `document`, `position` in the document, token `kind`."""

    @property
    def n_sequences(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """The same batch with a subset of its sequences."""

        def take(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        return replace(
            self,
            inputs={k: v[rows] for k, v in self.inputs.items()},
            mask=take(self.mask),
            targets=take(self.targets),
            tags={k: v[rows] for k, v in self.tags.items()},
        )


@runtime_checkable
class Sequences(Protocol):
    """A finite list of sequences that batches are drawn from. `data.Packed` is one."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch: ...
