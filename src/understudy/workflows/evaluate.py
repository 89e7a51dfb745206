"""`evaluate`: run a run's dictionaries in the network's place and say how well they play the part."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from ..core.dictionary import Group
from ..core.network import Network
from ..core.records.artifact import RunFolder
from ..core.records.config import Config
from ..core.records.errors import BadData, UnknownName
from ..core.records.metric import Metric, NotMeasured, exact
from ..core.records.progress import SILENT, Progress
from ..core.records.scorecard import (
    Behaviour,
    DictionaryRow,
    Positions,
    Recovered,
    Replaced,
    Rival,
    Rollout,
    Scorecard,
    Slice,
)
from ..core.replacement import Replacement
from ..core.site import Site
from ..data import Order, Packed
from ..metrics import ArmSums, Bootstrap, Dead, NGrams, equivalent_ngram
from ..metrics.behaviour import POSITION_NAMES
from ..networks import open_network
from ._data import Sequences, open_sequences
from ._judging.arms import ABLATIONS, Arm, build_arms, targets
from ._judging.labels import NAMES, target_kinds
from ._judging.passes import CLEAN, UNDERSTUDY, Local, behaviour_pass, local_pass
from ._judging.rollout import rollout
from ._runs import load_groups
from .train import TrainConfig

NO_LADDER = "no ladder of networks of this family to compare with"


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
    l0 = {s: _l0(x) for x in local for s in x.group.writes}
    arms = build_arms(run.network, train, targets(run.groups, l0), config.seed, progress)
    labels = target_kinds(run.network, data, "held_out", held_out) if isinstance(held_out, Packed) else None
    labels = None if labels is None else labels[picked]
    sums = behaviour_pass(run.network, run.groups, arms, held_out, picked, labels, NAMES if labels is not None else {}, progress)
    ngrams = _ngrams(run.network, train, held_out, picked)
    card = Scorecard(
        run=str(config.run),
        network=run.config.network,
        data=f"{data} (held out)",
        places=int(sums[CLEAN].count[0].sum()) if isinstance(sums, dict) else 0,
        sequences=n,
        replaced=replaced(run),
        dictionaries=[row for x in local for row in _rows(x, bootstrap)],
        replacement=_behaviour(sums, UNDERSTUDY, bootstrap, ngrams),
        baselines={a.name: _rival(a, sums, bootstrap, ngrams, l0) for a in arms},
        slices=_slices(sums, bootstrap),
        positions=_positions(sums, bootstrap),
        rollout=_rollout(config, run, held_out, picked, progress) if isinstance(sums, dict) else Rollout(),
        ngram_losses=_ngram_losses(ngrams, sums, bootstrap),
        thresholds=run.folder.read_json("thresholds.json"),
    )
    run.folder.write_text("scorecard.json", card.model_dump_json(indent=1) + "\n")
    progress.say(f"scorecard written to {run.folder.file('scorecard.json')}")
    return card


def replaced(run: SavedRun) -> Replaced:
    """What was taken out. A site that is no part's output (a residual stream) replaces no module."""
    written = {s for g in run.groups for s in g.writes}
    parts = run.network.parts()
    gone = [p for p in parts if p.write in written]
    modules = [path for p in gone for path in p.replaces]
    kept = [p.name for p in parts if p not in gone]
    others = ["embeddings and output head", "norms and residual additions"]
    return Replaced(
        modules=modules or [str(s) for s in written],
        share_of_parameters=run.network.share_of_parameters(modules) if modules else 0.0,
        share_of_compute=run.network.share_of_compute(modules) if modules else 0.0,
        still_original=[*kept, *others],
    )


def _l0(local: Local) -> float:
    return float(sum(s._places()[0].mean() for s in local.sparsity))


def _rows(local: Local, bootstrap: Bootstrap) -> list[DictionaryRow]:
    """One row for each written site; a group's latents are counted at all of its sites."""
    out = []
    for site, reconstruction in local.sites.items():
        near = [i for i, m in enumerate(local.group.members) if m.writes[0] == site] or [0]
        counter, member = local.sparsity[near[0]], local.group.members[near[0]]
        dead, histogram = counter.dead(), counter.density_histogram()
        out.append(DictionaryRow(
            site=str(site), kind=member.kind, n_latents=member.n_latents,
            fvu=reconstruction.fvu(bootstrap), l0=counter.l0(bootstrap),
            dead=dead.share if isinstance(dead, Dead) else dead, shrinkage=reconstruction.shrinkage(bootstrap),
            density=histogram.counts.tolist(), density_edges=histogram.edges.tolist(),
        ))  # fmt: skip
    return out


def _behaviour(
    sums: dict[str, ArmSums] | NotMeasured, name: str, bootstrap: Bootstrap, ngrams: np.ndarray | NotMeasured
) -> Behaviour:
    none = NotMeasured(not_measured=NO_LADDER)
    if isinstance(sums, NotMeasured):
        empty = Recovered(zero=sums, mean=sums, position_mean=sums, resample=sums)
        return Behaviour(
            loss_clean=sums, loss_replaced=sums, delta_loss=sums, kl=sums, top1_agreement=sums, recovered=empty,
            equivalent_ngram=sums, equivalent_compute=none,
        )  # fmt: skip
    arm, clean = sums[name], sums[CLEAN]

    def recovered(ablation: str) -> Metric:
        if ablation not in sums:
            return NotMeasured(not_measured=f"no {ablation} ablation at these sites")
        return arm.recovered(sums[ablation], clean, bootstrap)

    order = ngrams if isinstance(ngrams, NotMeasured) else equivalent_ngram(
        bootstrap, arm.sums["loss"][0], ngrams, arm.count[0]
    )  # fmt: skip
    return Behaviour(
        loss_clean=clean.loss(bootstrap), loss_replaced=arm.loss(bootstrap), delta_loss=arm.delta_loss(clean, bootstrap),
        kl=arm.kl(bootstrap), top1_agreement=arm.top1_agreement(bootstrap),
        recovered=Recovered(**{a: recovered(a) for a in ABLATIONS}), equivalent_ngram=order, equivalent_compute=none,
    )  # fmt: skip


def _rival(arm: Arm, sums: dict[str, ArmSums] | NotMeasured, bootstrap: Bootstrap, ngrams, l0: dict[Site, float]) -> Rival:
    mean = sum(l0.values()) / len(l0)
    budget = arm.name in ("pca", "random_dictionary") or arm.name.startswith("top_")
    paired = sums if isinstance(sums, NotMeasured) else sums[arm.name].delta_loss(sums[UNDERSTUDY], bootstrap)
    return Rival(
        l0=exact(round(mean) if budget else 0, "latents", bootstrap.n_sequences),
        replacement=_behaviour(sums, arm.name, bootstrap, ngrams),
        paired_delta_loss=paired, is_oracle=arm.is_oracle, note=arm.note,
    )  # fmt: skip


def _slices(sums: dict[str, ArmSums] | NotMeasured, bootstrap: Bootstrap) -> list[Slice]:
    if isinstance(sums, NotMeasured):
        return []
    clean, arm = sums[CLEAN], sums[UNDERSTUDY]
    out = []
    for name in clean.slices:
        count = clean.count[clean.slices.index(name)].sum()
        if name.startswith("kind/") and count:
            out.append(Slice(
                name=name.removeprefix("kind/"), share=float(count / clean.count[0].sum()),
                loss_clean=clean.loss(bootstrap, name), loss_replaced=arm.loss(bootstrap, name),
                delta_loss=arm.delta_loss(clean, bootstrap, name),
            ))  # fmt: skip
    return out


def _positions(sums: dict[str, ArmSums] | NotMeasured, bootstrap: Bootstrap) -> list[Positions]:
    if isinstance(sums, NotMeasured):
        return []
    clean, arm = sums[CLEAN], sums[UNDERSTUDY]
    out = []
    for name in POSITION_NAMES:
        part = f"position/{name}"
        if clean.count[clean.slices.index(part)].any():
            first, _, last = name.partition("-")
            out.append(Positions(
                first=int(first), last=int(last or first),
                loss_clean=clean.loss(bootstrap, part), loss_replaced=arm.loss(bootstrap, part),
                delta_loss=arm.delta_loss(clean, bootstrap, part),
            ))  # fmt: skip
    return out


def _rollout(config: EvaluateConfig, run: SavedRun, sequences: Sequences, picked: Tensor, progress: Progress) -> Rollout:
    if config.rollouts < 2:
        return Rollout()
    return rollout(run.network, run.groups, sequences, picked[: config.rollouts], config.seed, progress)


def _ngrams(network: Network, train: Sequences, held_out: Sequences, picked: Tensor) -> np.ndarray | NotMeasured:
    """Losses of n-gram models summed by sequence, [orders, n], on the same places."""
    if not isinstance(train, Packed) or not isinstance(held_out, Packed):
        return NotMeasured(not_measured="n-grams need token sequences")
    vocabulary = getattr(network, "vocab_size", int(max(train.tokens.max(), held_out.tokens.max())) + 1)
    model = NGrams.fit(train.tokens, train.document, vocabulary)
    batch = held_out.batch(picked)
    assert batch.targets is not None
    losses = model.losses(held_out.tokens[picked], held_out.document[picked], batch.targets != -100)
    return losses.double().sum(-1).numpy()


def _ngram_losses(
    ngrams: np.ndarray | NotMeasured, sums: dict[str, ArmSums] | NotMeasured, bootstrap: Bootstrap
) -> dict[str, Metric]:
    if isinstance(ngrams, NotMeasured) or isinstance(sums, NotMeasured):
        return {}
    counts = sums[CLEAN].count[0]
    return {str(order): bootstrap.ratio(losses, counts, "nats") for order, losses in enumerate(ngrams)}
