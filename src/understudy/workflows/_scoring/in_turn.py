"""Rivals fitted a few sites at a time, so that what is recorded for them stays small."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.workflows._judging.arms import FIT_PLACES, Arm, Target, build_arms

RECORDED_BYTES = 1 << 30


@dataclass(frozen=True)
class First:
    """The first n sequences of a split."""

    whole: Sequences
    n: int

    def __len__(self) -> int:
        return min(self.n, len(self.whole))

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        return self.whole.batch(rows)


def build_in_turn(
    network: Network, train: Sequences, wanted: Sequence[Target], seed: int, places: int | None, progress: Progress
) -> list[Arm]:
    """`build_arms` over groups of sites whose recorded activations fit in 1 GiB; the same arms, put together.

    places: at most so many of the training split.
    """
    sample = train if places is None else First(train, max(2, -(-places // _places(train.batch([0])))))
    made = [build_arms(network, sample, part, seed, progress) for part in _parts(network, wanted, places)]
    first, *others = made
    by_name = [{arm.name: arm for arm in arms} for arms in others]
    return [
        replace(arm, groups=[*arm.groups, *(g for arms in by_name for g in arms[arm.name].groups)])
        for arm in first
        if all(arm.name in arms for arms in by_name)
    ]


def _places(batch: Batch) -> int:
    like = batch.targets if batch.targets is not None else next(iter(batch.inputs.values()))
    return like[0].numel()


def _parts(network: Network, wanted: Sequence[Target], places: int | None) -> Iterator[list[Target]]:
    """Runs of targets, each within the limit or alone."""
    part: list[Target] = []
    widest = max(network.width(s) for t in wanted for s in (t.read, t.write))
    rows = places or max(FIT_PLACES, 20 * widest)
    held = 0
    for target in wanted:
        # What is read, what is written twice (once in whole sequences), and an MLP's neurons, some four widths.
        size = (
            4
            * rows
            * (network.width(target.read) + 2 * network.width(target.write))
            * (1 if target.read == target.write else 2)
        )
        if part and held + size > RECORDED_BYTES:
            yield part
            part, held = [], 0
        part.append(target)
        held += size
    yield part
