"""What to score, and its dictionaries opened on a network: headers at once, weights as they are needed."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from understudy.core.dictionary import Group
from understudy.core.names import find_sites
from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import UnknownName
from understudy.core.site import Site
from understudy.formats import Entry, Fitted, check_apart, fit, open_source
from understudy.workflows._scoring.streamed import Held, Streamed


class ScoreConfig(Config):
    """Which dictionaries to judge, on which network, and on how much."""

    dictionary: str
    """FOLDER, FOLDER/GLOB or hf:ORG/REPO[:GLOB] of SAELens, sparsify, Gemma Scope or circuit-tracer files."""
    network: str = "demo"
    """demo, demo:NAME, organism:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    sites: str | None = None
    """Only dictionaries that read or write these sites; by default all that are found."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    skip_first: NonNegativeInt | None = None
    """Places at the start of each row that are neither scored nor replaced; by default 1 where rows begin with a
    beginning-of-sequence token, else 0."""
    slice_by: str | None = None
    """Columns of the data to give figures by, separated by commas; `kind` is the kind of Python token, the default."""
    sequences: PositiveInt = 128
    """Held-out sequences; intervals rest on them."""
    rollouts: int = 32
    """Prompts of the free-running rollout; 0 leaves it out."""
    fit_places: PositiveInt | None = None
    """Most places of the training split that rivals are fitted on; by default 32768, or 20 times the widest site."""
    seed: int = 0
    """Decides which sequences, the bootstrap's resamples and the rivals' random directions."""
    held_gb: PositiveFloat = 2.0
    """Weights of dictionaries held in memory at once, in GB; the rest is read again when it is needed."""
    explanations: Path | None = None
    """Neuronpedia's explanations of the latents, a file or a folder: shown in the report as what others claim."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    out: Path = Path("runs/score")
    """Folder of the scorecard; `understudy report` and the others open it as they open a run."""


def open_groups(config: ScoreConfig, network: Network) -> list[Group]:
    """The groups that a configuration names, each a list of `Streamed` dictionaries, in forward order.

    Raises UnknownName, BadWeights, WrongShape; BadInput for two dictionaries that write one site.
    """
    entries = open_source(config.dictionary)
    if config.sites is None:
        check_apart(entries)
    fitted = fit(network, entries)
    if config.sites is not None:
        wanted = set(find_sites(network, config.sites))
        fitted = [f for f in fitted if wanted & {*f.reads, *f.writes}]
        if not fitted:
            raise UnknownName(
                f"none of the {len(entries)} dictionaries in {config.dictionary} reads or writes {config.sites}. They "
                f"write {', '.join(dict.fromkeys(w for e in entries for w in e.writes))}."
            )
        check_apart([f.entry for f in fitted])
    held = Held(int(config.held_gb * 1e9))
    groups = [_group(members, held) for members in _together(fitted)]
    order = {site: i for i, site in enumerate(find_sites(network, [s for g in groups for s in g.writes]))}
    return sorted(groups, key=lambda group: order[group.writes[0]])


def _together(fitted: Sequence[Fitted]) -> list[list[Fitted]]:
    """Entries of one group side by side, each other alone."""
    groups: dict[str, list[Fitted]] = {}
    for i, f in enumerate(fitted):
        groups.setdefault(f.entry.group or f"alone {i}", []).append(f)
    return list(groups.values())


def _group(members: Sequence[Fitted], held: Held) -> Group:
    biases: dict[Site, Tensor] = {}
    for member in members:
        biases |= member.bias()
    return Group([Streamed(member, held) for member in members], biases).requires_grad_(False)


def models(groups: Sequence[Group]) -> list[str]:
    """The networks that the files say their dictionaries were trained on."""
    return list(dict.fromkeys(e.model for e in entries(groups) if e.model))


def entries(groups: Sequence[Group]) -> list[Entry]:
    return [m.fitted.entry for g in groups for m in g.members if isinstance(m, Streamed)]
