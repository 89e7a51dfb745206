"""`evaluate`: run a run's dictionaries in the network's place and say how well they play the part."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, UnknownName
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Replaced, Rollout, Scorecard
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.data import Order, Packed
from understudy.metrics import Bootstrap
from understudy.networks import open_network
from understudy.workflows._data import open_sequences
from understudy.workflows._judging.arms import build_arms, targets
from understudy.workflows._judging.card import Figures, dictionary_rows, ngram_sums, not_run
from understudy.workflows._judging.labels import target_kinds
from understudy.workflows._judging.passes import behaviour_pass, local_pass
from understudy.workflows._judging.rollout import rollout
from understudy.workflows._runs import load_groups
from understudy.workflows.train import TrainConfig


class EvaluateConfig(Config):
    """What to judge, and on how much."""

    run: Path
    """Folder of a finished run."""
    data: str | None = None
    """Data to judge on; by default the held-out part of what the run was trained on."""
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
        names = {n.name: n.site for n in self.network.named_sites()}
        wanted = names.get(site) or Site.parse(site)
        for group in self.groups:
            if wanted in group.writes:
                return group
        raise UnknownName.among("written site of this run", site, [str(s) for g in self.groups for s in g.writes])


def open_run(path: Path | str) -> SavedRun:
    """Open a finished run and its network. Raises BadFolder, BadWeights, UnknownName."""
    folder = RunFolder.open(path)
    groups = load_groups(folder)
    config = TrainConfig.from_yaml(folder.file("config.yaml"))
    return SavedRun(folder, config, open_network(config.network), groups)


@torch.no_grad()
def evaluate(config: EvaluateConfig, progress: Progress = SILENT) -> Scorecard:
    """The scorecard of a run; also written to its folder as scorecard.json."""
    run = open_run(config.run)
    data = config.data or run.config.data
    held_out = open_sequences(run.network, data, "held_out", run.config.context, config.sequences * 512)
    train = open_sequences(run.network, run.config.data, "train", run.config.context, 1_000_000)
    n = min(config.sequences, len(held_out))
    if n < 2:
        raise BadData(f"{data} gives {n} held-out sequences; intervals need at least 2.")
    picked = Order(len(held_out), config.seed).stream(0, n)
    bootstrap = Bootstrap(n, config.seed)
    local = local_pass(run.network, run.groups, held_out, picked, progress)
    l0 = {site: x.mean_l0(site) for x in local for site in x.group.writes}
    arms = build_arms(run.network, train, targets(run.groups, l0), config.seed, progress)
    labels = target_kinds(run.network, data, "held_out", held_out) if isinstance(held_out, Packed) else None
    sums = behaviour_pass(run.network, run.groups, arms, held_out, picked, labels, progress)
    common = {
        "run": str(config.run),
        "network": run.config.network,
        "data": described(run.network, data),
        "sequences": n,
        "replaced": replaced(run),
        "dictionaries": [row for x in local for row in dictionary_rows(run.network, x, bootstrap)],
        "thresholds": run.folder.read_json("thresholds.json"),
    }
    if isinstance(sums, NotMeasured):
        card = Scorecard(
            **common, replacement=not_run(sums), baselines={}, slices=[], positions=[], rollout=Rollout(delta_loss=sums)
        )
    else:
        figures = Figures(
            sums, bootstrap, ngram_sums(run.network, train, held_out, picked), run.network.divergence_unit
        )
        mean_l0 = sum(l0.values()) / len(l0)
        card = Scorecard(
            **common,
            places=figures.n_places,
            replacement=figures.behaviour(),
            baselines={arm.name: figures.rival(arm, mean_l0) for arm in arms},
            slices=figures.slices(),
            positions=figures.positions(),
            rollout=_rollout(config, run, held_out, picked, progress),
            ngram_losses=figures.ngram_losses(),
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


def replaced(run: SavedRun) -> Replaced:
    """What was taken out. A site that is no part's output (a residual stream) replaces no module."""
    written = list(dict.fromkeys(s for g in run.groups for s in g.writes))
    parts = run.network.parts()
    gone = [p for p in parts if p.write in written]
    modules = [path for p in gone for path in p.replaces]
    return Replaced(
        modules=modules or [str(s) for s in written],
        share_of_parameters=run.network.share_of_parameters(modules) if modules else 0.0,
        share_of_compute=run.network.share_of_compute(modules) if modules else 0.0,
        still_original=[*(p.name for p in parts if p not in gone), *run.network.aside(), "everything between them"],
    )


def _rollout(
    config: EvaluateConfig, run: SavedRun, sequences: Sequences, picked: Tensor, progress: Progress
) -> Rollout:
    if config.rollouts < 2:
        return Rollout()
    return rollout(run.network, run.groups, sequences, picked[: config.rollouts], config.seed, progress)
