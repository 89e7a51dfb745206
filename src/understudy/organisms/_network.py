"""The adapter that organisms share, and the two kinds of data they run on."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Calls, NamedSite, Network, Neurons, Part
from understudy.core.records.metric import NotMeasured
from understudy.core.site import Site
from understudy.organisms import _seeds

PLACES = {"*.pattern:*": ("batch", "head", "pos", "d"), "*": ("batch", "pos", "d")}


class Listed:
    """Sequences held in memory as one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return self._batch.n_sequences

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        return self._batch[rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)]


class Drawn:
    """Sequences drawn anew from a seed of their own each time they are asked for; the same row is always the same."""

    def __init__(self, n: int, seed: int, draw: Callable[[torch.Generator], Batch]) -> None:
        """draw: one sequence, with a batch axis of 1."""
        self._n, self._seed, self._draw = n, seed, draw

    def __len__(self) -> int:
        return self._n

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        picked = range(self._n)[rows] if isinstance(rows, slice) else [range(self._n)[int(i)] for i in rows]
        parts = [self._draw(_seeds.generator(self._seed * 1_000_003 + i)) for i in picked]
        inputs = {k: torch.cat([p.inputs[k] for p in parts]) for k in parts[0].inputs}
        return Batch(inputs, torch.ones(next(iter(inputs.values())).shape[:2], dtype=torch.bool))


class OrganismNetwork(Network):
    """A module of this shelf with its data. Outputs are `logits` over categories or `numbers`."""

    family = "organism"

    def __init__(
        self,
        module: nn.Module,
        name: str,
        data: Mapping[str, Sequences],
        sites: Mapping[str, str],
        *,
        output: Literal["logits", "numbers"],
        parts: Sequence[Part] = (),
        aside: Sequence[str] = (),
        head: str | None = None,
        context: int | None = None,
    ) -> None:
        """sites: short names. head: path of the Linear that reads the last site straight into the outputs."""
        super().__init__(module, name)
        self._data, self._output, self._parts, self._aside, self._head = data, output, parts, tuple(aside), head
        self._sites = {short: Site.parse(path) for short, path in sites.items()}
        self.divergence_unit = "nats" if output == "logits" else "mean squared difference"
        self.max_context = context or self.max_context
        self.vocab_size = getattr(module, "n_vocab", 0)

    def example(self) -> Batch:
        return self._data["train"].batch(slice(0, 2))

    def sequences(self, split: str) -> Sequences | None:
        return self._data[split]

    def on(self, data: Mapping[str, Sequences]) -> "OrganismNetwork":
        """The same module with other data."""
        other = copy(self)
        other._data = data
        return other

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        for glob, names in PLACES.items():
            if fnmatchcase(str(site), glob) and len(names) == value.dim():
                return names, "once"
        return super().axes(site, value)

    def named_sites(self) -> tuple[NamedSite, ...]:
        return tuple(NamedSite(name, site, self.layout(site)) for name, site in self._sites.items())

    def parts(self) -> tuple[Part, ...]:
        return tuple(self._parts)

    def neurons(self, part: Part) -> Neurons | None:
        module = self.module.get_submodule(part.write.module)
        out = getattr(module, "write", None)
        if not isinstance(out, nn.Linear):
            return None
        return Neurons(Site(f"{part.write.module}.act"), out.weight.T, out.bias)

    def aside(self) -> tuple[str, ...]:
        return self._aside

    def loss(self, output: Any, batch: Batch) -> Tensor | NotMeasured:
        if self._output == "numbers":
            return NotMeasured(not_measured=f"{self.name} gives numbers, not probabilities")
        assert batch.targets is not None
        return F.cross_entropy(output.transpose(1, -1), batch.targets, reduction="none", ignore_index=-100)

    def divergence(self, a: Any, b: Any, batch: Batch) -> Tensor:
        if self._output == "numbers":
            return (a - b).square().mean(-1)
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    def choice(self, output: Any) -> Tensor | NotMeasured:
        return output.argmax(-1) if self._output == "logits" else super().choice(output)

    def logit_effects(self, directions: Tensor) -> Tensor | None:
        if self._head is None:
            return None
        return directions @ self.module.get_submodule(self._head).weight.T  # pyright: ignore


@torch.no_grad()
def hits(network: Network, sequences: Sequences, run: Callable[[Batch], Any] | None = None) -> tuple[int, int]:
    """How many of the places that have a target are predicted right, and how many there are."""
    batch = sequences.batch(slice(0, len(sequences)))
    assert batch.targets is not None
    chosen = network.choice((run or network.forward)(batch))
    assert isinstance(chosen, Tensor)
    counted = batch.targets != -100
    return int((chosen == batch.targets)[counted].sum()), int(counted.sum())
