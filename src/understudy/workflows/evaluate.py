"""`evaluate`: run a run's dictionaries in the network's place and say how well they play the part."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput, UnknownName
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Replaced, Rollout, Scorecard
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.data import Order, Packed
from understudy.metrics import Bootstrap
from understudy.networks import open_network
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._judging.arms import build_arms, targets
from understudy.workflows._judging.card import Figures, dictionary_rows, ngram_sums, not_run
from understudy.workflows._judging.labels import target_kinds
from understudy.workflows._judging.passes import behaviour_pass, local_pass
from understudy.workflows._judging.rollout import rollout
from understudy.workflows._runs import check_network, load_groups
from understudy.workflows.train import TrainConfig


class EvaluateConfig(Config):
    """What to judge, and on how much."""

    run: Path
    """Folder of a finished run."""
    data: str | None = None
    """Data to judge on; by default the held-out part of what the run was trained on."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    sequences: PositiveInt = 128
    """Held-out sequences; intervals rest on them."""
    rollouts: int = 32
    """Prompts of the free-running rollout; 0 leaves it out."""
    seed: int = 0
    """Decides which sequences, the bootstrap's resamples and the rivals' random directions."""


@dataclass(frozen=True)
class SavedRun:
    """A finished run, opened: `replacement` runs it in the network's place."""

    folder: RunFolder
    config: TrainConfig
    network: Network
    groups: list[Group]

    @property
    def replacement(self) -> Replacement:
        return Replacement(self.network, self.groups)

    def __getitem__(self, site: str) -> Group:
        """The group that writes a site, by path or short name."""
        names = {n.name: n.site for n in self.network.named_sites()} | {p.name: p.write for p in self.network.parts()}
        wanted = names.get(site) or Site.parse(site)
        for group in self.groups:
            if wanted in group.writes:
                return group
        written = [short_name(self.network, s) for g in self.groups for s in g.writes]
        raise UnknownName.among("written site of this run", site, written)


def open_run(path: Path | str, network: Network | str | None = None) -> SavedRun:
    """Open a finished run and its network; `network` stands in for the one its config names.

    Raises BadFolder, BadWeights, UnknownName; BadInput if the config names code to run (`py:...`) and nobody asked to.
    """
    folder = RunFolder.open(path)
    groups = load_groups(folder)
    config = TrainConfig.from_yaml(folder.file("config.yaml"))
    if network is None and not config.network.startswith(("demo", "hf:")):
        raise BadInput(
            f"the run at {path} was trained on {config.network}, which is code or an object of yours: say so with "
            f"--network {config.network}, or open_run(path, network=...)."
        )
    opened = network if isinstance(network, Network) else open_network(network or config.network)
    check_network(folder, opened)
    return SavedRun(folder, config, opened, groups)


@torch.no_grad()
def evaluate(config: EvaluateConfig, progress: Progress = SILENT, network: Network | None = None) -> Scorecard:
    """The scorecard of a run; also written to its folder as scorecard.json. network: as for `open_run`."""
    run = open_run(config.run, network or config.network)
    data = config.data or run.config.data
    enough = config.sequences * (run.config.context or DEFAULT_CONTEXT)
    held_out = open_sequences(run.network, data, "held_out", run.config.context, enough)
    train = open_sequences(run.network, run.config.data, "train", run.config.context, 1_000_000)
    n = min(config.sequences, len(held_out))
    if n < 2:
        raise BadData(f"{data} gives {n} held-out sequences; intervals need at least 2.")
    picked = Order(len(held_out), config.seed).stream(0, n)
    bootstrap = Bootstrap(n, config.seed, clusters=documents(held_out, picked))
    local = local_pass(run.network, run.groups, held_out, picked, progress)
    l0 = {site: x.mean_l0(site) for x in local for site in x.group.writes}
    arms = build_arms(run.network, train, targets(run.groups, l0), config.seed, progress)
    labels = target_kinds(run.network, data, "held_out", held_out) if isinstance(held_out, Packed) else None
    judged = behaviour_pass(run.network, run.groups, arms, held_out, picked, labels, progress)
    common = {
        "run": str(config.run),
        "network": run.config.network,
        "data": described(run.network, data),
        "sequences": n,
        "units": bootstrap.n_units,
        "replaced": replaced(run, held_out.batch(picked[:2])),
        "dictionaries": [row for x in local for row in dictionary_rows(run.network, x, bootstrap)],
        "thresholds": run.folder.read_json("thresholds.json"),
    }
    if isinstance(judged, NotMeasured):
        nothing = Rollout(delta_loss=judged)
        card = Scorecard(**common, replacement=not_run(judged), baselines={}, slices=[], positions=[], rollout=nothing)
    else:
        ngrams = ngram_sums(run.network, train, held_out, picked)
        figures = Figures(judged, bootstrap, ngrams, run.network.divergence_unit)
        card = Scorecard(
            **common,
            places=figures.n_places,
            replacement=figures.behaviour(),
            baselines={arm.name: figures.rival(arm) for arm in arms},
            slices=figures.slices(),
            positions=figures.positions(),
            rollout=_rollout(config, run, held_out, picked, progress),
            ngram_losses=figures.ngram_losses(),
            ngram_tokens=train.n_tokens if isinstance(train, Packed) else 0,
        )
    run.folder.write_text("scorecard.json", card.model_dump_json(indent=1) + "\n")
    progress.say(f"scorecard written to {run.folder.file('scorecard.json')}")
    return card


def described(network: Network, data: str) -> str:
    """What was judged on, as the scorecard says it."""
    return (
        f"{network.name}'s own sequences (held out)"
        if network.sequences("held_out") is not None
        else f"{data} (held out)"
    )


def documents(sequences: Sequences, picked: Tensor) -> np.ndarray | None:
    """The document each sequence begins in: rows of one document are not independent. None where unknown."""
    found = sequences.batch(picked).tags.get("document")
    return None if found is None else found[:, 0].numpy()


def replaced(run: SavedRun, batch: Batch) -> Replaced:
    """What was taken out: modules whose output is written by a group that does not read it.

    An SAE reads what the module makes, so the module still runs: nothing is taken out, an activation is rewritten.
    batch: what the share of compute is counted on.
    """
    written = list(dict.fromkeys(s for g in run.groups for s in g.writes))
    read = {s for g in run.groups for s in g.reads}
    parts = run.network.parts()
    gone = [p for p in parts if p.write in written and p.write not in read]
    modules = [path for p in gone for path in p.replaces]
    return Replaced(
        modules=modules,
        rewritten=[str(s) for s in written if s not in [p.write for p in gone]],
        share_of_parameters=run.network.share_of_parameters(modules) if modules else 0.0,
        share_of_compute=run.network.share_of_compute(modules, batch) if modules else 0.0,
        still_original=[*(p.name for p in parts if p not in gone), *run.network.aside(), "everything between them"],
    )


def _rollout(
    config: EvaluateConfig, run: SavedRun, sequences: Sequences, picked: Tensor, progress: Progress
) -> Rollout:
    if config.rollouts < 2:
        return Rollout()
    return rollout(run.network, run.groups, sequences, picked[: config.rollouts], config.seed, progress)
