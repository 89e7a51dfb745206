"""What every grid starts with: a configuration, a folder to go on in, one site of a network, text in two parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput
from understudy.data import Order
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._grid.measure import Judging
from understudy.workflows._grid.together import Bench
from understudy.workflows._opening import open_network
from understudy.workflows._training.build import plan
from understudy.workflows.train import Count, TrainConfig

CHOSEN_ON = 32
"""Held-out sequences that learning rates are chosen on."""


class GridConfig(Config):
    """What all cells of a grid share."""

    network: str = "demo"
    """demo, demo:NAME, ladder:NAME, organism:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    site: str = "resid.2"
    """One site, or one part for a transcoder. See `understudy sites NETWORK`."""
    kind: str = "sae"
    """sae, transcoder, skip_transcoder, or the path of your own class."""
    places: Count = 500_000
    """Places each run is trained on; 500k and 2M are understood."""
    batch: PositiveInt = 2048
    """Places a step."""
    seeds: PositiveInt = 2
    """Runs of each cell that differ in their starting directions and in the order of the data."""
    seed: NonNegativeInt = 0
    """The first of them; also decides which sequences are judged and the bootstrap's resamples."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    skip_first: NonNegativeInt | None = None
    """Places at the start of each row that do not count; by default 1 where rows begin with an opening token."""
    sequences: PositiveInt = 96
    """Held-out sequences that figures rest on."""
    held_gb: PositiveFloat = 4.0
    """Weights and optimisers of cells that are trained over one harvest; what does not fit takes another."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    plan: bool = False
    """Print the plan with its time on this machine, and stop."""
    resume: bool = False
    """Go on with what `out` holds: cells that are done are kept."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""
    out: Path
    """Folder of the grid; each cell is a run in cells/ that the other commands open."""

    def base(self) -> TrainConfig:
        """A cell's configuration before what makes it that cell."""
        return TrainConfig(
            network=self.network, kind=self.kind, sites=self.site, tokens=self.places, data=self.data,
            context=self.context, batch=self.batch, skip_first=self.skip_first, device=self.device,
        )  # fmt: skip


C = TypeVar("C", bound=GridConfig)
FREE = {"out", "resume", "checkpoint_s", "device", "plan", "held_gb"}
"""What may differ when a grid is resumed."""


@contextmanager
def grid_folder(config: C) -> Iterator[tuple[RunFolder, C]]:
    """The folder, locked, and the values that hold: of a resumed grid the saved ones.

    A new one is no grid before the caller has written its config.yaml: what fails until then leaves nothing. Raises
    BadFolder; BadInput where a value that was given is another than the saved one.
    """
    if not config.resume:
        folder = RunFolder.new(config.out)
        with folder.locked("training a grid"):
            yield folder, config
        return
    folder = RunFolder.open(config.out)
    saved = type(config).from_yaml(folder.file("config.yaml"))
    if changed := config.changed_from(saved, FREE):
        raise BadInput(
            f"{config.out} was started with other values ({'; '.join(changed)}). Resume it as it was (only "
            f"{', '.join(sorted(FREE))} may differ), or start another in another --out."
        )
    with folder.locked("training a grid"):
        yield folder, saved.model_copy(update={k: getattr(config, k) for k in FREE})


def open_bench(config: GridConfig, network: Network | None = None) -> tuple[Bench, Judging]:
    """The network, its one site and the text. Raises UnknownName; BadInput for several sites; BadData."""
    network = network or open_network(config.network, device=config.device)
    what = plan(network, config.kind, config.site)
    n_written = sum(len(writes) for group in what.groups for _, writes in group)
    if n_written != 1:
        raise BadInput(
            f"--site {config.site} gives a {config.kind} {n_written} sites to write; a grid compares dictionaries of "
            "one site. Name one: understudy sites " + config.network
        )
    network.probe(what.sites)
    opened = (network, config.data)
    rest = (config.context, 2 * config.places, config.skip_first)
    train = open_sequences(*opened, "train", *rest)
    enough = (config.sequences + CHOSEN_ON) * (config.context or DEFAULT_CONTEXT)
    held_out = open_sequences(*opened, "held_out", config.context, enough, config.skip_first)
    n_chosen = min(CHOSEN_ON, len(held_out) // 4)
    n = min(config.sequences, len(held_out) - n_chosen)
    if n < 2 or n_chosen < 1:
        raise BadData(f"{config.data} gives {len(held_out)} held-out sequences; a grid needs at least 4.")
    picked = Order(len(held_out), config.seed).stream(0, n + n_chosen)
    return Bench(network, what, train), Judging(held_out, picked[:n], picked[n:])
