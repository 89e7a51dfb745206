"""Rows of what dictionaries read and what they miss, and the part of a recorded error in a few directions."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadData
from understudy.core.records.progress import Progress
from understudy.core.replacement import Recording, Replacement
from understudy.core.site import Site
from understudy.data import Order
from understudy.metrics import ErrorFit

AT_ONCE = 8


def rows(
    group: Group, site: Site, recording: Recording, mask: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(input, error, sequence) rows at one written site, places that count only; one triple for each call."""
    reads = [s for s in dict.fromkeys(s for m in group.writers(site) for s in m.reads) if not s.is_input]
    for (at, call), error in recording.errors.items():
        if at != site:
            continue
        read = [recording.acts.get((s, call), recording.acts[s, 0]) for s in reads]
        places = error.shape[:-1]
        fitting = [x.float() for x in read if x.shape[:-1] == places]
        if not fitting:
            raise BadData(f"nothing that is read for {site} has its places {tuple(places)}: its error has no input.")
        real = torch.ones(places, dtype=torch.bool, device=error.device)
        if mask is not None and mask.shape == places:
            real = mask.to(error.device)
        sequence = torch.arange(len(error), device=error.device).view(-1, *[1] * (len(places) - 1)).expand(places)
        yield torch.cat(fitting, -1)[real], error.float()[real], sequence[real]


@torch.no_grad()
def fit_errors(
    replacement: Replacement, sequences: Sequences, wanted: int, seed: int, progress: Progress
) -> dict[Site, ErrorFit]:
    """Sums over at least `wanted` training rows, and 100 for each coordinate of what is read, where there are as many.

    A map fitted to noise is worse than the mean by coordinates / rows: 1% at 100 rows a coordinate.
    """
    fits: dict[Site, ErrorFit] = {}
    picked = Order(len(sequences), seed).stream(0, len(sequences))
    with progress.task("fitting errors", wanted, "places") as task:
        for at in picked.split(AT_ONCE):
            batch = sequences.batch(at).to(replacement.network.device)
            recording = replacement.record(batch)
            for group in replacement.groups:
                for site in group.writes:
                    for x, e, _ in rows(group, site, recording, batch.mask):
                        fit = fits.setdefault(site, ErrorFit(x.shape[-1], e.shape[-1], seed))
                        fit.update(x, e)
                        wanted = max(wanted, 100 * x.shape[-1])
            done = min(fit.n for fit in fits.values())
            task.update(min(done, wanted))
            if done >= wanted:
                break
    return fits


def in_directions(recording: Recording, directions: Mapping[Site, Tensor], rank: int) -> Recording:
    """The recording with each error's part in the first `rank` directions of its site in place of the error."""
    kept = {}
    for (site, call), error in recording.errors.items():
        first = directions[site][:rank].to(error.device, error.dtype)
        kept[site, call] = (error @ first.T) @ first
    return replace(recording, errors=kept)


def own_part(recording: Recording, group: Group) -> Recording:
    """The recording with the errors of one group only."""
    return replace(recording, errors={k: v for k, v in recording.errors.items() if k[0] in group.writes})


def scored(batch: Batch, like: Tensor) -> Tensor:
    """True at the places of a loss that count."""
    if batch.targets is None or batch.targets.shape != like.shape:
        return batch.mask if batch.mask is not None else torch.ones_like(like, dtype=torch.bool)
    real = batch.targets != -100
    return real if batch.mask is None else real & batch.mask
