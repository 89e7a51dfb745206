"""Behaviour: loss, divergence and agreement of one arm of a comparison, per sequence, by position and by slice."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from understudy.core.bootstrap import Bootstrap
from understudy.core.records.errors import NonFiniteLoss, UnknownName, WrongShape
from understudy.core.records.metric import Metric, NotMeasured

ALL = "all"
POSITION_STARTS = (0, 1, 4, 16, 64, 256, 1024, 4096)
POSITION_NAMES = ("0", "1-3", "4-15", "16-63", "64-255", "256-1023", "1024-4095", "4096-")
_QUANTITIES = ("loss", "kl", "agree")


class ArmSums:
    """Sums over the scored places of one arm (clean, replaced, mean-ablated, ...), one column per sequence.

    Slices are `all`, `position/0`, `position/1-3`, ... and `TAG/NAME` for each declared tag. Every arm must be scored
    on the same places: figures that compare two arms refuse anything else. fp64, mergeable, and the order and size of
    batches change nothing.
    """

    def __init__(self, name: str, n_sequences: int, tags: Mapping[str, Sequence[str]] | None = None) -> None:
        """tags: names of the values of each integer tag column, e.g. {"kind": ("keyword", "number", ...)}."""
        self.name, self.n_sequences = name, n_sequences
        self._columns = {"position": POSITION_NAMES, **{k: tuple(v) for k, v in (tags or {}).items()}}
        self.slices: tuple[str, ...] = (ALL, *(f"{c}/{v}" for c, values in self._columns.items() for v in values))
        self.count = np.zeros((len(self.slices), n_sequences))
        """Scored places, [n_slices, n_seq]."""
        self.sums: dict[str, np.ndarray] = {}
        """`loss` (nats), `kl`, `agree`, each [n_slices, n_seq]; a quantity never given is not there."""
        self._scored = np.zeros(n_sequences, np.uint64)

    def add(
        self,
        sequences: Int[Tensor, " b"],
        scored: Bool[Tensor, " b *places"],
        loss: Shaped[Tensor, " b *places"] | None = None,
        kl: Shaped[Tensor, " b *places"] | None = None,
        agree: Shaped[Tensor, " b *places"] | None = None,
        position: Int[Tensor, " b *places"] | None = None,
        tags: Mapping[str, Int[Tensor, " b *places"]] | None = None,
    ) -> None:
        """Add a batch. What places that are not scored hold is not read.

        sequences: index of each row, in 0..n_sequences-1. loss in nats; kl to the clean run; agree: whether the top
        choice is the clean run's. position: counted from 0, in the document or in the row, as the caller means; None
        leaves the position slices empty. tags: value of each declared tag, -1 for none.
        Raises NonFiniteLoss if a scored loss or divergence is NaN or infinite.
        """
        mask = scored.cpu().numpy()
        place = np.broadcast_to(np.arange(prod(mask.shape[1:])).reshape(mask.shape[1:]), mask.shape)[mask]
        row = np.broadcast_to(sequences.cpu().numpy().reshape(-1, *[1] * (mask.ndim - 1)), mask.shape)[mask]
        given = {name: t for name, t in zip(_QUANTITIES, (loss, kl, agree)) if t is not None}
        if self.count.any() and set(given) != set(self.sums):
            raise WrongShape(f"Arm {self.name!r} was given {sorted(self.sums)} before and {sorted(given)} now.")
        values = {name: t.detach().cpu().double().numpy()[mask] for name, t in given.items()}
        for name, value in values.items():
            if not np.isfinite(value).all():
                at = int(np.flatnonzero(~np.isfinite(value))[0])
                raise NonFiniteLoss(
                    f"The {name} of arm {self.name!r} is {value[at]} at sequence {row[at]}, place {place[at]}. "
                    f"Nothing is skipped silently: leave the place out of `scored` in every arm, or find the cause."
                )
        self._tally(slice(0, 1), row, np.zeros_like(row), values)
        start = 1
        for column, names in self._columns.items():
            where = slice(start, start + len(names))
            start += len(names)
            if column == "position" and position is not None:
                code = np.searchsorted(POSITION_STARTS, position.cpu().numpy()[mask], side="right") - 1
            elif column != "position" and tags is not None and column in tags:
                code = tags[column].cpu().numpy()[mask].astype(np.int64)
            else:
                continue
            if len(code) and code.max() >= len(names):
                raise WrongShape(f"Tag {column!r} has value {code.max()} but only {len(names)} names.")
            self._tally(where, row[code >= 0], code[code >= 0], {k: v[code >= 0] for k, v in values.items()})
        if unknown := set(tags or {}) - set(self._columns):
            raise UnknownName.among("tag", unknown.pop(), self._columns, "Tags are declared when the arm is made.")
        np.add.at(self._scored, row, _mixed(place))

    def _tally(self, where: slice, row: np.ndarray, code: np.ndarray, values: dict[str, np.ndarray]) -> None:
        shape = (where.stop - where.start, self.n_sequences)
        cell = code.astype(np.int64) * self.n_sequences + row
        self.count[where] += np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        for name, value in values.items():
            total = self.sums.setdefault(name, np.zeros_like(self.count))
            total[where] += np.bincount(cell, weights=value, minlength=shape[0] * shape[1]).reshape(shape)

    def merge(self, other: "ArmSums") -> "ArmSums":
        """The sums of both; the same as if one had seen all batches."""
        if (self.slices, self.n_sequences) != (other.slices, other.n_sequences):
            raise WrongShape("Cannot merge arms with different slices or numbers of sequences.")
        if self.count.any() and other.count.any() and set(self.sums) != set(other.sums):
            raise WrongShape(f"Cannot merge an arm that holds {sorted(self.sums)} with {sorted(other.sums)}.")
        both = ArmSums(self.name, self.n_sequences)
        both._columns, both.slices = self._columns, self.slices
        both.count, both._scored = self.count + other.count, self._scored + other._scored
        zero = np.zeros_like(self.count)
        both.sums = {k: self.sums.get(k, zero) + other.sums.get(k, zero) for k in self.sums | other.sums}
        return both

    def loss(self, bootstrap: Bootstrap, part: str = ALL) -> Metric:
        """Mean loss in nats per scored place; part: one of `slices`."""
        return self._mean("loss", "nats", bootstrap, part)

    def kl(self, bootstrap: Bootstrap, part: str = ALL, unit: str = "nats") -> Metric:
        """Mean divergence from the clean run per scored place."""
        return self._mean("kl", unit, bootstrap, part)

    def top1_agreement(self, bootstrap: Bootstrap, part: str = ALL) -> Metric:
        """Share of scored places where the top choice is the clean run's."""
        return self._mean("agree", "fraction", bootstrap, part)

    def delta_loss(self, clean: "ArmSums", bootstrap: Bootstrap, part: str = ALL) -> Metric:
        """Loss of this arm minus loss of another, paired, in nats: the only figure that needs no baseline."""
        if reason := self._missing("loss", part) or clean._missing("loss", part):
            return reason
        self._check_same_places(clean)
        at = self._index(part)
        return bootstrap.difference(self.sums["loss"][at], clean.sums["loss"][at], self.count[at], "nats")

    def recovered(self, baseline: "ArmSums", clean: "ArmSums", bootstrap: Bootstrap, part: str = ALL) -> Metric:
        """Share of the baseline arm's damage that this arm avoids (see Bootstrap.recovered)."""
        arms = (baseline, self, clean)
        if reason := next((r for arm in arms if (r := arm._missing("loss", part))), None):
            return reason
        self._check_same_places(baseline)
        self._check_same_places(clean)
        at = self._index(part)
        losses = [arm.sums["loss"][at] for arm in arms]
        return bootstrap.recovered(losses[0], losses[1], losses[2], self.count[at])

    def _mean(self, what: str, unit: str, bootstrap: Bootstrap, part: str) -> Metric:
        if reason := self._missing(what, part):
            return reason
        at = self._index(part)
        return bootstrap.ratio(self.sums[what][at], self.count[at], unit)

    def _index(self, part: str) -> int:
        if part not in self.slices:
            raise UnknownName.among("slice", part, self.slices)
        return self.slices.index(part)

    def _missing(self, what: str, part: str) -> NotMeasured | None:
        if not self.count[self._index(part)].any():
            return NotMeasured(not_measured=f"no scored place in slice {part!r} of arm {self.name!r}")
        if what not in self.sums:
            return NotMeasured(not_measured=f"arm {self.name!r} was given no {what}")
        return None

    def _check_same_places(self, other: "ArmSums") -> None:
        if not (np.array_equal(self._scored, other._scored) and np.array_equal(self.count, other.count)):
            raise WrongShape(
                f"Arms {self.name!r} and {other.name!r} were scored on different places "
                f"({int(self.count[0].sum())} and {int(other.count[0].sum())}). Use one mask, the same tags and the "
                f"same sequences for every arm."
            )


def _mixed(place: np.ndarray) -> np.ndarray:
    """A 64-bit number for each place index; sums of them tell apart sets of places (splitmix64)."""
    x = (place.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
