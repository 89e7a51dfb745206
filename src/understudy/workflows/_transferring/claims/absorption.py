"""Nested prefixes (Matryoshka) remove the absorption that a plain sparse dictionary has.

On features that are planted into the network's own activations, so that which places have the parent and which a child
is known for any network. Bussmann et al. 2025, arXiv:2503.17547.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from understudy.core.dictionary import Group
from understudy.core.records.metric import NotMeasured
from understudy.metrics import Bootstrap
from understudy.metrics.absorption import Absorption, absorption, own_latents
from understudy.workflows._grid.draws import Draws
from understudy.workflows._grid.together import Bench
from understudy.workflows._transferring.claim import Arm, Claim, Counter, Seen, Tally
from understudy.workflows._transferring.planting import CHILDREN, LENGTH, LOOSE, NESTED, PlantedBench, Planting, rms

FOUND = 0.5
"""F1 from which a parent has latents of its own. Absorption is about a parent's latents: of one without any nothing
can be said, so only parents count that every run has which the arms are read off from, and a row says how many."""
_HELD_OUT = 1_000_000_007
"""Added to the numbers of held-out batches, so that they differ from those of training chunks."""


class NestedRemovesAbsorption(Claim):
    name = "absorption"
    sentence = "Nested prefixes (Matryoshka) remove the absorption that BatchTopK has."
    defect = "absorption"
    definition = (
        "of planted parents, the share of places with a child at which the parent's own latents are silent and others "
        "write at least half of its direction, minus the same share where the parent is alone; 0 is none"
    )
    unit = "fraction"
    source = "Chanin et al. 2024, arXiv:2409.14507 and Bussmann et al. 2025, arXiv:2503.17547"
    control = (
        "the same of parents whose children are on as often but whatever the parent does, in the same activations: "
        "nothing can be absorbed there"
    )
    least = 0.02
    least_width = 1 + CHILDREN
    passes = 8
    """Planted anew each time: a loose child meets its parent at few places."""
    arms = (
        Arm("batch_topk", "batch_topk"),
        Arm("batch_topk nested", "batch_topk", (("objective", "matryoshka"),)),
    )

    def bench(self, bench: Bench, seed: int) -> PlantedBench:
        (rows,) = bench.harvest(seed).chunk(0).values()
        planting = Planting(rows.shape[1], LENGTH * rms(rows), seed)
        return PlantedBench(bench.network, bench.what, bench.train, planting=planting)

    def given(self, bench: Bench, rows: Tensor, number: int) -> Tensor:
        assert isinstance(bench, PlantedBench)
        return rows + bench.planting.draw(len(rows), _HELD_OUT + number).added.to(rows)

    def counter(self, bench: Bench, group: Group, n_sequences: int) -> Counter:
        assert isinstance(bench, PlantedBench)
        return _Counter(bench, group, n_sequences)

    def defects(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws] | NotMeasured:
        return _of(tallies, bootstrap, slice(0, NESTED))

    def controls(self, tallies: Sequence[Tally], bootstrap: Bootstrap) -> list[Draws] | NotMeasured:
        return _of(tallies, bootstrap, slice(NESTED, NESTED + LOOSE))

    def notes(self, by_seed: Sequence[Mapping[str, Sequence[Tally]]]) -> list[str]:
        """How many parents each arm has found, and how many all have."""
        of = NESTED * len(by_seed)
        own = {a: sum(int(_found(arms[a]).sum()) for arms in by_seed if arms[a]) for a in by_seed[0]}
        both = sum(int(_found([t for ts in arms.values() for t in ts]).sum()) for arms in by_seed if all(arms.values()))
        found = ", ".join(f"{n} in {arm}" for arm, n in own.items())
        return [f"parents with latents of their own, of {of}: {found}; {both} in every arm are counted"]


def _found(tallies: Sequence[Tally], families: slice = slice(0, NESTED)) -> Bool[np.ndarray, " families"]:
    return np.all([t["f1"][families] >= FOUND for t in tallies], axis=0)


def _of(tallies: Sequence[Tally], bootstrap: Bootstrap, families: slice) -> list[Draws] | NotMeasured:
    """Pooled over the parents that every dictionary found."""
    found = _found(tallies, families)
    if 2 * found.sum() < len(found):
        return NotMeasured(
            not_measured=f"only {found.sum()} of {len(found)} planted parents have latents of their own in every arm "
            "of a seed: train longer (--places), or give more latents (--width)"
        )
    pooled = [{k: v[:, families][:, found].sum(1) for k, v in t.items() if k != "f1"} for t in tallies]
    return [absorption(bootstrap.sums(**p)) for p in pooled]


class _Counter(Counter):
    """Every family's counts. A parent's own latents are found on training rows, once."""

    def __init__(self, bench: PlantedBench, group: Group, n_sequences: int) -> None:
        self.planting = bench.planting
        (site,) = group.writes
        (member,) = group.members
        rows, drawn = bench.fit
        z = member.encode({site: rows}).z
        atoms = member.atoms(torch.arange(member.n_latents, device=rows.device))[site].float()
        self.families = []
        for i in range(NESTED + LOOSE):
            parent, child = (x[:, i].to(rows.device) for x in (drawn.parents, drawn.children))
            own = own_latents(z, parent, child)
            along = atoms @ bench.planting.directions[i, 0].to(atoms)
            counted = Absorption(n_sequences, own, along, bench.planting.length)
            counted.baseline = float(counted.carried(z)[~parent].mean())
            self.families.append(counted)

    def update(self, seen: Seen) -> None:
        drawn = self.planting.draw(len(seen.x), _HELD_OUT + seen.number)
        for i, counted in enumerate(self.families):
            parent, child = (x[:, i].to(seen.x.device) for x in (drawn.parents, drawn.children))
            counted.update(seen.z, parent & child, parent & ~child, seen.sequences)

    def sums(self) -> Tally:
        names = self.families[0].sums
        sums = {name: np.stack([f.sums[name] for f in self.families], axis=1) for name in names}
        return sums | {"f1": np.array([f.own.f1 for f in self.families])}
