"""Parts of the scored places, and what is lost in each: slices, positions, and slices at positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from understudy.core.records.holes import Cell, Concentration
from understudy.core.records.metric import Measured, Metric
from understudy.data import Column
from understudy.metrics import Bootstrap
from understudy.metrics.behaviour import POSITION_NAMES, POSITION_STARTS
from understudy.workflows._holes.passes import CLEAN, PlaceLosses

SHARES = (0.01, 0.1)


@dataclass(frozen=True)
class Part:
    """A set of places: those with a label, at a range of positions, or both."""

    where: np.ndarray
    slice: str = ""
    first: int | None = None
    last: int | None = None

    def __and__(self, other: "Part") -> "Part":
        return Part(self.where & other.where, self.slice or other.slice, other.first, other.last)


def slices(labels: Sequence[Column], picked: Tensor, scored: np.ndarray) -> list[Part]:
    """One part for each value that labels a scored place; named with its column where there are several."""
    out = []
    for column in labels:
        codes = column.codes[picked].flatten(1).numpy()
        for i, value in enumerate(column.values):
            if (where := scored & (codes == i)).any():
                out.append(Part(where, f"{column.name} = {value}" if len(labels) > 1 else value))
    return out


def positions(scored: np.ndarray, in_order: bool) -> list[Part]:
    """Ranges of positions in the row, each four times as long; none where places have no order."""
    if not in_order:
        return []
    at = np.broadcast_to(np.arange(scored.shape[1]), scored.shape)
    out = []
    for name, first, end in zip(POSITION_NAMES, POSITION_STARTS, (*POSITION_STARTS[1:], scored.shape[1]), strict=True):
        where = scored & (at >= first) & (at < end)
        if where.any():
            last = int(name.partition("-")[2] or first) if name[-1] != "-" else scored.shape[1] - 1
            out.append(Part(where, first=first, last=min(last, scored.shape[1] - 1)))
    return out


@dataclass(frozen=True)
class Figures:
    """Losses and the bootstrap that every figure shares."""

    losses: PlaceLosses
    bootstrap: Bootstrap

    @property
    def counts(self) -> np.ndarray:
        return self.losses.scored.sum(1).astype(float)

    def mean(self, arm: str) -> Metric:
        return self.bootstrap.ratio(self.losses.nats[arm].sum(1), self.counts, "nats")

    def lost(self, arm: str, base: str = CLEAN) -> Metric:
        """Mean loss of one arm minus that of another, paired."""
        return self.bootstrap.ratio(self.losses.lost(arm, base).sum(1), self.counts, "nats")

    def sum_alone(self, arms: Sequence[str]) -> Metric:
        return self.bootstrap.ratio(sum(self.losses.lost(a).sum(1) for a in arms), self.counts, "nats")  # pyright: ignore

    def interaction(self, whole: str, arms: Sequence[str]) -> Metric:
        alone = sum(self.losses.lost(a).sum(1) for a in arms)
        return self.bootstrap.ratio(self.losses.lost(whole).sum(1) - alone, self.counts, "nats")

    def recovered(self, arm: str, of: str) -> Metric:
        """Share of what `of` loses that `arm` does not."""
        nats = [self.losses.nats[name].sum(1) for name in (of, arm, CLEAN)]
        return self.bootstrap.recovered(nats[0], nats[1], nats[2], self.counts)

    def cells(self, arms: Sequence[str], parts: Sequence[Part]) -> Iterator[Cell]:
        for arm in arms:
            lost = self.losses.lost(arm)
            for part in parts:
                inside = (lost * part.where).sum(1)
                yield Cell(
                    arm=arm, slice=part.slice, first=part.first, last=part.last,
                    share=float(part.where.sum() / self.counts.sum()),
                    delta_loss=self.bootstrap.ratio(inside, part.where.sum(1), "nats"),
                    adds=self.bootstrap.ratio(inside, self.counts, "nats"),
                )  # fmt: skip

    def concentration(self, arm: str) -> list[Concentration]:
        """What the places that lose most lose, over what all lose; the cut between them is held fixed."""
        lost = self.losses.lost(arm)
        ranked = np.sort(lost[self.losses.scored])[::-1]
        out = []
        for share in SHARES:
            cut = ranked[max(1, round(share * len(ranked))) - 1]
            most = np.where(self.losses.scored & (lost >= cut), lost, 0).sum(1)
            figure = self.bootstrap.figure(
                lambda a, b: np.where(b > 0, a / b, np.nan), "fraction", present=self.counts, a=most, b=lost.sum(1)
            )
            out.append(Concentration(places=share, of_excess=figure))
        return out


def largest(cells: Sequence[Cell], n: int) -> list[Cell]:
    """The cells that add most, among those whose loss was measured."""
    measured = [c for c in cells if isinstance(c.adds, Measured)]
    return sorted(measured, key=lambda c: -c.adds.value if isinstance(c.adds, Measured) else 0.0)[:n]
