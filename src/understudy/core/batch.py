"""Batch: what a network is run on, and which of its places count.

Two masks are kept apart. What the network attends to is an input of its own (`inputs["attention_mask"]`) and decides
what it computes. `Batch.mask` says which places count: it decides what is trained on, replaced and scored, never what
the network computes. Padding is out of both; a beginning-of-sequence token may be attended to and not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from understudy.core.records.errors import WrongShape

NO_TARGET = -100
"""Where nothing is predicted; the value that `torch.nn.functional.cross_entropy` ignores."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, with one mask that every arm of a comparison shares."""

    inputs: Mapping[str, Tensor]
    """Keyword arguments of the module's forward, e.g. `input_ids` of shape [batch, pos]."""
    mask: Bool[Tensor, " batch *places"] | None = None
    """True at places that count; None: all do. False at padding, and at places that are left out. There a replacement
    keeps the network's own activations, and no figure, fit or training row uses what they hold."""
    targets: Int[Tensor, " batch *places"] | None = None
    """What the output at each place should be (next token, action, class); -100 where there is none."""
    tags: Mapping[str, Tensor] = field(default_factory=dict)
    """Other columns over places: `document`, `position` in the document, token `kind`."""

    @property
    def n_sequences(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return replace(
            self,
            inputs={k: v.to(device) for k, v in self.inputs.items()},
            mask=move(self.mask),
            targets=move(self.targets),
            tags={k: v.to(device) for k, v in self.tags.items()},
        )

    def skipping(self, n: int) -> "Batch":
        """The same batch with the first n places of every sequence not counted: mask False, no target there.

        The inputs stay as they are. Raises WrongShape if neither mask nor targets say what the places are.
        """
        if n == 0:
            return self
        like = self.targets if self.mask is None else self.mask
        if like is None or like.dim() < 2:
            raise WrongShape(f"which places are the first {n} is not known: give the batch a mask [batch, pos].")
        mask = torch.ones_like(like, dtype=torch.bool) if self.mask is None else self.mask.clone()
        mask[:, :n] = False
        targets = None if self.targets is None else self.targets.clone()
        if targets is not None and targets.dim() > 1:
            targets[:, :n] = NO_TARGET
        return replace(self, mask=mask, targets=targets)

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
