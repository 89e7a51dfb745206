"""One pass over the evaluation sequences: the loss at every place, with every choice of groups in place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.errors import AcausalReplacement, BadInput
from understudy.core.records.holes import EVERYWHERE
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.replacement import MEASURED_ERRORS, Recording, Replacement
from understudy.core.site import Site
from understudy.metrics import ErrorFit, ErrorSums
from understudy.workflows._holes.errors import AT_ONCE, in_directions, own_part, rows, scored

CLEAN = "clean"


@dataclass
class PlaceLosses:
    """Losses in nats of every arm at every place; [n_sequences, places], 0 where nothing is scored."""

    scored: np.ndarray
    nats: dict[str, np.ndarray] = field(default_factory=dict)
    """`clean`, `all at once`, a group's name (it alone), and what `without` and `returned` name."""
    errors: dict[Site, ErrorSums] = field(default_factory=dict)

    def lost(self, arm: str, base: str = CLEAN) -> np.ndarray:
        return self.nats[arm] - self.nats[base]


def without(name: str) -> str:
    """The arm in which every group but one is in place."""
    return f"all but {name}"


def returned(arm: str, rank: int) -> str:
    """The arm with the first directions of its errors put back."""
    return f"{arm} + {rank}"


@dataclass(frozen=True)
class Arms:
    """Which groups are in place, by name; built once."""

    whole: Replacement
    alone: dict[str, Replacement]
    others: dict[str, Replacement]

    @classmethod
    def of(cls, network: Network, groups: dict[str, Group], skip_first: int) -> "Arms":
        def placed(kept: Sequence[Group]) -> Replacement:
            return Replacement(network, kept, skip_first)

        several = len(groups) > 1
        return cls(
            placed(list(groups.values())),
            {name: placed([g]) for name, g in groups.items()},
            {name: placed([o for o in groups.values() if o is not g]) for name, g in groups.items()} if several else {},
        )


@torch.no_grad()
def losses_of_arms(
    arms: Arms,
    fits: dict[Site, ErrorFit],
    ranks: Sequence[int],
    sequences: Sequences,
    picked: Tensor,
    progress: Progress,
) -> PlaceLosses:
    """The loss of every arm at every place, and the error's sums by sequence.

    Raises BadInput where the network has no loss or the groups cannot run in its place.
    """
    n = len(picked)
    sums = {site: ErrorSums(n, fit, ranks_of(fit, ranks)) for site, fit in fits.items()}
    directions = {site: fit.directions() for site, fit in fits.items()}
    kept: dict[str, list[np.ndarray]] = {}
    counted: list[np.ndarray] = []
    with progress.task("replacing one site at a time", n, "sequences") as task:
        for at in torch.arange(n).split(AT_ONCE):
            batch = sequences.batch(picked[at]).to(arms.whole.network.device)
            recording = arms.whole.record(batch)
            for group in arms.whole.groups:
                for site in group.writes:
                    for x, e, sequence in rows(group, site, recording, batch.mask):
                        sums[site].update(x, e, at[0] + sequence.cpu())
            try:
                found = _losses(arms, batch, recording, directions, ranks)
            except AcausalReplacement as error:
                raise BadInput(f"holes are found by running the groups in the network's place: {error}") from None
            for name, nats in found.items():
                kept.setdefault(name, []).append(nats.flatten(1).double().cpu().numpy())
            counted.append(scored(batch, found[CLEAN]).flatten(1).cpu().numpy())
            task.update(int(at[-1]) + 1)
    where = np.concatenate(counted)
    return PlaceLosses(where, {k: np.concatenate(v) * where for k, v in kept.items()}, sums)


def ranks_of(fit: ErrorFit, ranks: Sequence[int]) -> list[int]:
    """The ranks that a site is wide enough for."""
    return [r for r in ranks if r <= len(fit.directions())]


def _losses(
    arms: Arms, batch: Batch, recording: Recording, directions: dict[Site, Tensor], ranks: Sequence[int]
) -> dict[str, Tensor]:
    network = arms.whole.network

    def loss(output: object) -> Tensor:
        found = network.loss(output, batch)
        if isinstance(found, NotMeasured):
            raise BadInput(f"holes are where loss is lost, but {found.not_measured}.")
        return found

    out = {CLEAN: loss(network.forward(batch)), EVERYWHERE: loss(arms.whole.run(batch).output)}
    for name, replacement in arms.alone.items():
        out[name] = loss(replacement.run(batch).output) if arms.others else out[EVERYWHERE]
    for name, replacement in arms.others.items():
        out[without(name)] = loss(replacement.run(batch).output)
    for rank in ranks:
        back = in_directions(recording, directions, rank)
        out[returned(EVERYWHERE, rank)] = loss(arms.whole.run(batch, MEASURED_ERRORS, back).output)
        for name, replacement in arms.alone.items() if arms.others else ():
            own = own_part(back, replacement.groups[0])
            out[returned(name, rank)] = loss(replacement.run(batch, MEASURED_ERRORS, own).output)
    return out
