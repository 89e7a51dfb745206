"""`evaluate`: run a run's dictionaries in the network's place and say how well they play the part."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.names import find_sites, short_name
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadData, BadInput, UnknownName
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Acting, DictionaryRow, Replaced, Rollout, Scorecard
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.data import Order, Packed
from understudy.metrics import Bootstrap
from understudy.workflows._data import DEFAULT_CONTEXT, n_skipped, open_sequences
from understudy.workflows._judging.acting import acting
from understudy.workflows._judging.arms import targets
from understudy.workflows._judging.card import Figures, dictionary_rows, ngram_sums, not_run
from understudy.workflows._judging.labels import columns
from understudy.workflows._judging.passes import behaviour_pass, local_pass
from understudy.workflows._judging.rollout import rollout
from understudy.workflows._judging.rungs import ladder_sums
from understudy.workflows._opening import open_network
from understudy.workflows._runs import check_network, load_groups
from understudy.workflows._scoring.in_turn import build_in_turn
from understudy.workflows._scoring.opening import ScoreConfig, open_groups
from understudy.workflows.train import TrainConfig


class EvaluateConfig(Config):
    """What to judge, and on how much."""

    run: Path
    """Folder of a finished run; RUN:mlp.3 is one group of it, judged alone."""
    data: str | None = None
    """Data to judge on; by default the held-out part of what the run was trained on."""
    slice_by: str | None = None
    """Columns of the data to give figures by, separated by commas; `kind` is the kind of Python token, the default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    sequences: PositiveInt = 128
    """Held-out sequences; intervals rest on them."""
    rollouts: int = 32
    """Prompts of the free-running rollout, or episodes of a policy; 0 leaves it out."""
    fit_places: PositiveInt | None = None
    """Most places of the training split that rivals are fitted on; by default 32768, or 20 times the widest site."""
    seed: int = 0
    """Decides which sequences, the bootstrap's resamples and the rivals' random directions."""


@dataclass(frozen=True)
class SavedRun:
    """A finished run, or a score's dictionaries, opened: `replacement` runs them in the network's place."""

    folder: RunFolder
    config: TrainConfig | ScoreConfig
    network: Network
    groups: list[Group]
    part: str = ""
    """What its address named, where these are not all groups of the run."""

    @property
    def skip_first(self) -> int:
        """Places at the start of each sequence that keep the network's own activations."""
        return n_skipped(self.network, self.config.skip_first)

    @property
    def replacement(self) -> Replacement:
        return Replacement(self.network, self.groups, self.skip_first)

    def file_name(self, name: str, data: str | None = None) -> str:
        """`scorecard.json` for the whole run on its own data; a part or other data have names of their own."""
        return named(name, self.part, data if data != self.config.data else None)

    def __getitem__(self, site: str) -> Group:
        """The group that writes a site, by path or short name."""
        names = {n.name: n.site for n in self.network.named_sites()} | {p.name: p.write for p in self.network.parts()}
        wanted = names.get(site) or Site.parse(site)
        for group in self.groups:
            if wanted in group.writes:
                return group
        written = [short_name(self.network, s) for g in self.groups for s in g.writes]
        raise UnknownName.among("written site of this run", site, written)


def open_run(
    path: Path | str, network: Network | str | None = None, device: str | None = None, code: bool = False
) -> SavedRun:
    """Open a finished run and its network; `network` stands in for the one its config names. A score's folder opens as
    a run does, with its dictionaries from the files that were scored.

    path: RUN, or RUN:SITES for the groups that write these sites (`runs/x:mlp.3`). device: for a network that is opened
    here, as `open_network` takes it. code: dictionaries of the user's own classes may be imported. Raises BadFolder,
    BadWeights, UnknownName; BadInput if the run names code to run (`py:...`, `my_lab.sae.MySAE`) and nobody asked to.
    """
    path, part = address(path)
    folder = RunFolder.open(path)
    is_score = folder.file("source.json").exists()
    groups = [] if is_score else load_groups(folder, code)
    config = (ScoreConfig if is_score else TrainConfig).from_yaml(folder.file("config.yaml"))
    if network is None and not config.network.startswith(("demo", "ladder:", "hf:", "organism:")):
        raise BadInput(
            f"the run at {path} was trained on {config.network}, which is code or an object of yours: say so with "
            f"--network {config.network}, or open_run(path, network=...)."
        )
    opened = network if isinstance(network, Network) else open_network(network or config.network, device=device)
    check_network(folder, opened)
    if isinstance(config, ScoreConfig):
        groups = open_groups(config, opened)
    groups = [g.to(opened.device) for g in _chosen(opened, groups, part)]
    return SavedRun(folder, config, opened, groups, part)


def address(path: Path | str) -> tuple[Path, str]:
    """The folder of a run and the part that `RUN:PART` names, "" where it names none."""
    text = str(path)
    colons = [] if Path(text).exists() else [i for i, c in enumerate(text) if c == ":"]
    at = next((i for i in colons if Path(text[:i]).is_dir()), colons[0] if colons else len(text))
    return Path(text[:at]), text[at + 1 :]


def _chosen(network: Network, groups: list[Group], part: str) -> list[Group]:
    if not part:
        return groups
    sites = find_sites(network, part)
    chosen = [g for g in groups if set(g.writes) & set(sites)]
    if not chosen:
        written = [short_name(network, s) for g in groups for s in g.writes]
        raise UnknownName.among("written site of this run", part, written)
    return chosen


def named(name: str, *tags: str | None) -> str:
    """A file's name with tags before its suffix: `scorecard.json`, `scorecard.mlp.3.json`."""
    stem, _, suffix = name.rpartition(".")
    return ".".join([stem, *(_slug(text) for text in tags if text), suffix])


def _slug(text: str) -> str:
    """Text as a part of a file's name; what had to be changed for it gets a hash, so that no two are alike."""
    plain = re.sub(r"[^\w.-]+", "-", text).strip("-")[:60]
    return plain if plain == text else f"{plain}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def evaluate(config: EvaluateConfig, progress: Progress = SILENT, network: Network | None = None) -> Scorecard:
    """The scorecard of a run; also written to its folder: as scorecard.json for the whole run on its own data, under a
    name of its own for a part of it or other data. network: as for `open_run`."""
    return judge(open_run(config.run, network or config.network, config.device), config, progress)


@torch.no_grad()
def judge(run: SavedRun, config: EvaluateConfig, progress: Progress = SILENT) -> Scorecard:
    """The scorecard of a run that is open; written as `evaluate` says."""
    data = config.data or run.config.data
    context, skip = run.config.context, run.skip_first
    enough = config.sequences * (context or DEFAULT_CONTEXT)
    held_out = open_sequences(run.network, data, "held_out", context, enough, skip)
    train = open_sequences(run.network, run.config.data, "train", context, 1_000_000, skip)
    n = min(config.sequences, len(held_out))
    if n < 2:
        raise BadData(f"{data} gives {n} held-out sequences; intervals need at least 2.")
    picked = Order(len(held_out), config.seed).stream(0, n)
    bootstrap = Bootstrap(n, config.seed, clusters=documents(held_out, picked))
    names = None if config.slice_by is None else [c.strip() for c in config.slice_by.split(",") if c.strip()]
    labels = columns(run.network, data, held_out, names, picked, progress)
    local = local_pass(run.network, run.groups, held_out, picked, progress)
    l0 = {site: x.mean_l0(site) for x in local for site in x.group.writes}
    arms = build_in_turn(run.network, train, targets(run.groups, l0), config.seed, config.fit_places, progress)
    judged = behaviour_pass(run.network, run.groups, arms, held_out, picked, labels, progress)
    thresholds = run.folder.read_json("thresholds.json")
    rows = [row for x in local for row in dictionary_rows(run.network, x, bootstrap)]
    common = {
        "run": str(config.run),
        "network": run.config.network,
        "data": described(run.network, data),
        "sequences": n,
        "units": bootstrap.n_units,
        "replaced": replaced(run, held_out.batch(picked[:2]).to(run.network.device)),
        "dictionaries": rows,
        "warnings": warnings(rows),
        "thresholds": {g.name: t for g in run.groups if (t := thresholds.get(g.name))},
    }
    if isinstance(judged, NotMeasured):
        nothing = Rollout(delta_loss=judged)
        card = Scorecard(**common, replacement=not_run(judged), baselines={}, slices=[], positions=[], rollout=nothing)
    else:
        ngrams = ngram_sums(run.network, train, held_out, picked)
        ladder = ladder_sums(run.network, held_out, picked, progress)
        figures = Figures(judged, bootstrap, ngrams, ladder, run.network.divergence_unit)
        card = Scorecard(
            **common,
            places=figures.n_places,
            replacement=figures.behaviour(),
            baselines={arm.name: figures.rival(arm) for arm in arms},
            slices=figures.slices(),
            positions=figures.positions(),
            rollout=_rollout(config, run, held_out, picked, progress),
            acting=_acting(config, run, progress),
            ngram_losses=figures.ngram_losses(),
            ngram_tokens=train.n_tokens if isinstance(train, Packed) else 0,
        )
    written = run.folder.write_text(run.file_name("scorecard.json", data), card.model_dump_json(indent=1) + "\n")
    progress.say(f"scorecard written to {written}")
    return card


def warnings(rows: Sequence[DictionaryRow]) -> tuple[str, ...]:
    """What a scorecard says of dictionaries whose error exceeds the variance of what they write."""
    return tuple(
        f"{row.name or row.site} does worse than a constant would (fvu {row.fvu.value:.3g}). Most likely it belongs to "
        "another network or site, or to activations in other units."
        for row in rows
        if isinstance(row.fvu, Measured) and row.fvu.low > 1
    )


def described(network: Network, data: str) -> str:
    """What was judged on, as the scorecard says it."""
    return (
        f"{network.name}'s own sequences (held out)"
        if network.sequences("held_out") is not None and not data.startswith("images:")
        else f"{data} (held out)"
    )


def documents(sequences: Sequences, picked: Tensor) -> np.ndarray | None:
    """The document each sequence begins in: rows of one document are not independent. None where unknown."""
    found = sequences.batch(picked).tags.get("document")
    return None if found is None else torch.where(found[:, 0] < 0, found[:, :2][:, -1], found[:, 0]).cpu().numpy()


def replaced(run: SavedRun, batch: Batch) -> Replaced:
    """What was taken out: modules whose output is written by a group that does not read it.

    An SAE reads what the module makes, so the module still runs: nothing is taken out, an activation is rewritten.
    batch: what the share of compute is counted on.
    """
    written = list(dict.fromkeys(s for g in run.groups for s in g.writes))
    read = {s for g in run.groups for s in g.reads}
    parts = run.network.parts()
    named = {row.name: row.site for row in run.network.named_sites()}
    # What a part adds to the stream may leave through a norm behind it (Gemma 2, OLMo 2): `mlp_write.3` for `mlp.3`.
    ends = {p: {p.write, named.get("_write.".join(p.name.rsplit(".", 1)), p.write)} for p in parts}
    gone = [p for p in parts if ends[p] & {*written} and not ends[p] & read]
    modules = [path for p in gone for path in p.replaces]
    return Replaced(
        modules=modules,
        rewritten=[str(s) for s in written if not any(s in ends[p] for p in gone)],
        share_of_parameters=run.network.share_of_parameters(modules) if modules else 0.0,
        share_of_compute=run.network.share_of_compute(modules, batch) if modules else 0.0,
        still_original=[*(p.name for p in parts if p not in gone), *run.network.aside(), "everything between them"],
        skip_first=run.skip_first,
    )


def _rollout(
    config: EvaluateConfig, run: SavedRun, sequences: Sequences, picked: Tensor, progress: Progress
) -> Rollout:
    if config.rollouts < 2:
        return Rollout()
    picked = picked[: config.rollouts]
    return rollout(run.network, run.groups, sequences, picked, config.seed, progress, run.skip_first)


def _acting(config: EvaluateConfig, run: SavedRun, progress: Progress) -> Acting:
    if config.rollouts < 2:
        return Acting()
    return acting(run.network, run.replacement, config.rollouts, config.seed, progress)
