"""`holes`: where a replacement loses its nats - site, slice, position - and what its errors are like."""

from pathlib import Path

import torch
from pydantic import PositiveInt

from understudy.core.dictionary import Group
from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput
from understudy.core.records.holes import EVERYWHERE, Directions, Holes, Returned, SiteError, SiteHoles
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.data import Order, Packed
from understudy.metrics import Bootstrap
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._holes.cells import Figures, largest, positions, slices
from understudy.workflows._holes.errors import fit_errors
from understudy.workflows._holes.passes import CLEAN, Arms, losses_of_arms, ranks_of, returned, without
from understudy.workflows._holes.worst import worst_places, worst_sequences
from understudy.workflows._judging.labels import columns
from understudy.workflows.evaluate import SavedRun, described, documents, open_run

CELLS = 24
"""Parts of site x slice x position that are shown."""
TRAIN_TOKENS = 1_000_000


class HolesConfig(Config):
    """Whose holes, and on how much."""

    run: Path
    """Folder of a finished run or of a score; RUN:mlp.3 is one group of it."""
    data: str | None = None
    """Data to look at; by default the held-out part of what the run was trained on."""
    slice_by: str | None = None
    """Columns of the data to slice by, separated by commas; `kind` is the kind of Python token, the default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    sequences: PositiveInt = 64
    """Held-out sequences; intervals rest on them."""
    ranks: str = "1,8,64"
    """Numbers of directions of the error that are put back, separated by commas."""
    fit_places: PositiveInt = 32_768
    """Rows of training text that the error's directions and linear maps are fitted on, at least."""
    shown: PositiveInt = 8
    """Worst sequences shown; three times as many places."""
    seed: int = 0
    """Decides which sequences, the bootstrap's resamples and the shuffled control."""


@torch.no_grad()
def holes(config: HolesConfig, progress: Progress = SILENT, network: Network | None = None) -> Holes:
    """Run every group alone, all but each, and all at once, on the same held-out places; written as holes.json."""
    ranks = _ranks(config.ranks)
    run = open_run(config.run, network or config.network, config.device)
    data = config.data or run.config.data
    context, skip = run.config.context, run.skip_first
    enough = config.sequences * (context or DEFAULT_CONTEXT)
    held_out = open_sequences(run.network, data, "held_out", context, enough, skip)
    train = open_sequences(run.network, run.config.data, "train", context, TRAIN_TOKENS, skip)
    n = min(config.sequences, len(held_out))
    if n < 2:
        raise BadData(f"{data} gives {n} held-out sequences; intervals need at least 2.")
    picked = Order(len(held_out), config.seed).stream(0, n)
    bootstrap = Bootstrap(n, config.seed, clusters=documents(held_out, picked))
    names = None if config.slice_by is None else [c.strip() for c in config.slice_by.split(",") if c.strip()]
    labels = columns(run.network, data, held_out, names, picked, progress)
    groups = {_name(run, g): g for g in run.groups}
    arms = Arms.of(run.network, groups, skip)
    fits = fit_errors(arms.whole, train, config.fit_places, config.seed, progress)
    losses = losses_of_arms(arms, fits, ranks, held_out, picked, progress)

    figures = Figures(losses, bootstrap)
    whole, each = [EVERYWHERE], list(groups) if len(groups) > 1 else []
    by_slice = slices(labels, picked, losses.scored)
    along = positions(losses.scored, isinstance(held_out, Packed))
    three_way = list(
        figures.cells(each or whole, [a & b for a in by_slice for b in along if (a.where & b.where).any()])
    )
    ids = held_out.tokens[picked] if isinstance(held_out, Packed) and run.network.tokenizer is not None else None
    found = Holes(
        run=str(config.run),
        network=run.config.network,
        data=described(run.network, data),
        sequences=n,
        units=bootstrap.n_units,
        places=int(losses.scored.sum()),
        loss_clean=figures.mean(CLEAN),
        loss_replaced=figures.mean(EVERYWHERE),
        delta_loss=figures.lost(EVERYWHERE),
        sum_alone=figures.sum_alone(list(groups)),
        interaction=figures.interaction(EVERYWHERE, list(groups)),
        sites=[_site(run, name, g, figures, fits, ranks, len(groups) > 1) for name, g in groups.items()],
        returned=[Returned(rank=r, recovered=figures.recovered(returned(EVERYWHERE, r), EVERYWHERE)) for r in ranks],
        by_slice=list(figures.cells([*whole, *each], by_slice)),
        by_position=list(figures.cells([*whole, *each], along)),
        cells=largest(three_way, CELLS),
        n_cells=len(three_way),
        concentration=figures.concentration(EVERYWHERE),
        worst_places=worst_places(losses, run.network, ids, by_slice, 3 * config.shown),
        worst_sequences=worst_sequences(losses, run.network, ids, picked, config.shown),
        fit_rows=min(fit.n for fit in fits.values()),
    )
    written = run.folder.write_text(run.file_name("holes.json", data), found.model_dump_json(indent=1) + "\n")
    progress.say(f"figures written to {written}")
    return found


def _site(
    run: SavedRun, name: str, group: Group, figures: Figures, fits: dict, ranks: list[int], several: bool
) -> SiteHoles:
    back = [(r, returned(name if several else EVERYWHERE, r)) for r in ranks]
    return SiteHoles(
        name=name,
        alone=figures.lost(name),
        last=figures.lost(EVERYWHERE, without(name) if several else CLEAN),
        errors=[_error(run, site, figures, ranks_of(fits[site], ranks)) for site in group.writes],
        returned=[
            Returned(rank=r, recovered=figures.recovered(arm, name if several else EVERYWHERE)) for r, arm in back
        ],
    )


def _error(run: SavedRun, site: Site, figures: Figures, ranks: list[int]) -> SiteError:
    sums, b, width = figures.losses.errors[site], figures.bootstrap, run.network.width(site)
    return SiteError(
        site=str(site),
        name=short_name(run.network, site),
        width=width,
        directions=[Directions(rank=r, share=sums.share(r, b), chance=r / width) for r in ranks],
        predictable=sums.predictable(b),
        control=sums.predictable(b, shuffled=True),
    )


def _name(run: SavedRun, group: Group) -> str:
    """The short names of the sites that a group writes."""
    named = [short_name(run.network, s) for s in group.writes]
    return named[0] if len(named) == 1 else f"{named[0]} to {named[-1]}"


def _ranks(text: str) -> list[int]:
    try:
        found = sorted({int(x) for x in text.split(",") if x.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise BadInput(f"--ranks {text!r}: give whole numbers of directions above 0, e.g. 1,8,64.")
    return found
