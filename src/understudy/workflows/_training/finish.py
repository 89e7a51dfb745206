"""The end of a run: averaged weights, per-latent thresholds, raw units, and what each of these changed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Acts, Context, Group
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import AcausalReplacement, BadData
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.data import Order
from understudy.workflows._data import open_sequences
from understudy.workflows._runs import save_groups, save_weights
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.trainer import Trainer

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

CHECKED_SEQUENCES = 32
AT_ONCE = 4
"""Sequences in one pass: logits of a large vocabulary are what needs memory here."""


@dataclass(frozen=True)
class Conversion:
    """A group before and after its rule became thresholds, on sequences drawn at random.

    They are held out, or from the training data where nothing is held out; provenance.json says which. None: not a
    finite number, or nothing to measure.
    """

    fvu_before: float | None
    fvu_after: float | None
    l0_before: float | None
    l0_after: float | None
    delta_loss_before: float | None
    """Nats per place with this group alone in the network's place; None where it cannot run or there is no loss."""
    delta_loss_after: float | None

    def __str__(self) -> str:
        text = f"fvu {_change(self.fvu_before, self.fvu_after, 4)}, l0 {_change(self.l0_before, self.l0_after, 1)}"
        if self.delta_loss_before is not None or self.delta_loss_after is not None:
            text += f", delta loss {_change(self.delta_loss_before, self.delta_loss_after, 4)} nats"
        return text


def _change(before: float | None, after: float | None, digits: int) -> str:
    return " -> ".join("not measured" if x is None else f"{x:.{digits}f}" for x in (before, after))


class Checked(NamedTuple):
    """What the conversion is checked on."""

    sequences: Sequences
    split: str


def open_checked(config: "TrainConfig", network: Network, train: Sequences, progress: Progress) -> Checked:
    """Held-out sequences, or `train` where there are none. Opened before training, so that what fails fails early."""
    try:
        enough = CHECKED_SEQUENCES * 512
        held_out = open_sequences(network, config.data, "held_out", config.context, enough, config.skip_first)
    except BadData as error:
        progress.say(f"thresholds will be checked on training data, as there is no held-out text: {error}")
        return Checked(train, "train")
    return Checked(held_out, "held_out")


@torch.no_grad()
def finish(
    config: "TrainConfig",
    folder: RunFolder,
    network: Network,
    trainer: Trainer,
    harvest: Harvest,
    checked: Checked,
    progress: Progress,
) -> dict[str, Conversion]:
    """Convert, save, measure; returns before and after by group name. groups.json, written last, marks the end."""
    trainer.use_averages()
    fit = harvest.chunk(1_000_003)  # sequences in an order of their own, from the training split
    fit = {s: v[: 1 << 15].clone() for s, v in fit.items()}
    final = []
    with progress.task("fitting thresholds", len(trainer.groups), "groups") as task:
        for i, group in enumerate(trainer.groups):
            final.append(folded(group.thresholded(fit)))
            task.update(i + 1)
    save_weights(folder, final)
    picked = Order(len(checked.sequences), config.seed).stream(0, min(CHECKED_SEQUENCES, len(checked.sequences)))
    looks = [_Look(group) for group in (*trainer.groups, *final)]
    with progress.task("checking thresholds", len(picked), "sequences") as task:
        for done in _look(network, checked.sequences, picked, looks):
            task.update(done)
    pairs = zip(looks[: len(final)], looks[len(final) :], strict=True)
    conversions = {
        b.group.name: Conversion(b.fvu(), a.fvu(), b.l0(), a.l0(), b.delta_loss(), a.delta_loss()) for b, a in pairs
    }
    on = f"{len(picked)} {checked.split.replace('_', '-')} sequences"
    folder.write_json("provenance.json", folder.read_json("provenance.json") | {"thresholds checked on": on})
    folder.write_json("thresholds.json", {k: asdict(v) for k, v in conversions.items()})
    save_groups(folder, final)
    for name, conversion in conversions.items():
        progress.say(f"thresholds at {name}: {conversion}")
    return conversions


def folded(group: Group) -> Group:
    """The same group in the network's own units: normalisation goes into the weights."""
    members = [m.folded() if isinstance(m, LinearDictionary) else m for m in group.members]
    return Group(members, group.biases or None)


def _look(network: Network, sequences: Sequences, picked: Tensor, looks: Sequence["_Look"]) -> Iterator[int]:
    """A few sequences at a time, with one clean pass for all groups. A quick look; `evaluate` gives intervals."""
    sites = tuple(dict.fromkeys(s for look in looks for s in (*look.group.reads, *look.group.writes)))
    for start in range(0, len(picked), AT_ONCE):
        batch = sequences.batch(picked[start : start + AT_ONCE]).to(network.device)
        acts = {s: v.float() for s, v in network.record(batch, sites).items()}
        clean = NotMeasured(not_measured="no targets") if batch.targets is None else _loss(network, batch)
        for look in looks:
            look.add_acts(acts, batch)
            if isinstance(clean, Tensor):
                look.add_loss(network, batch, clean)
        yield min(start + AT_ONCE, len(picked))


def _loss(network: Network, batch: Batch) -> Tensor | NotMeasured:
    network.prepare(batch)
    return network.loss(network.forward(batch), batch)


@dataclass
class _Look:
    """Sums of one group over the batches it has seen."""

    group: Group
    n_rows: int = 0
    occurrences: float = 0.0
    missed: dict[Site, float] = field(default_factory=dict)
    moments: dict[Site, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    """(an origin near the mean, sum of x - origin, sum of |x - origin|^2), so that the variance keeps its digits."""
    extra: float = 0.0
    targets: int = 0
    runs: bool = True
    """False once the group turned out not to be able to run in the network's place."""

    def add_acts(self, acts: Acts, batch: Batch) -> None:
        """Activations [batch, *places, d]: as loose rows of the places that count, but whole where a member mixes
        places."""
        group, mask = self.group, None if batch.mask is None else batch.mask.reshape(-1)

        def rows(x: Tensor, n_last: int = 1) -> Tensor:
            x = x.flatten(0, x.dim() - 1 - n_last)
            return x if mask is None else x[mask]

        acts = {s: acts[s] for s in (*group.reads, *group.writes)}
        if all(m.scope == "place" for m in group.members):
            acts, mask = {s: rows(v) for s, v in acts.items()}, None
        encoded = group.encode(acts, Context(batch.inputs, batch.mask))
        spent = sum(rows(e.z.l0(), 0).double().mean() for e in encoded)
        hats = {s: rows(hat) for s, hat in group.write([e.z for e in encoded], acts).items()}
        n = len(next(iter(hats.values())))
        self.n_rows += n
        self.occurrences += n * float(spent)
        for s, hat in hats.items():
            x = rows(acts[s])
            self.missed[s] = self.missed.get(s, 0.0) + float((x - hat).double().square().sum())
            x = x.double()
            origin, total, squares = self.moments.get(s, (x.mean(0), torch.zeros_like(x[0]), 0.0))
            x = x - origin
            self.moments[s] = (origin, total + x.sum(0), squares + float(x.square().sum()))

    def add_loss(self, network: Network, batch: Batch, clean: Tensor) -> None:
        if not self.runs:
            return
        assert batch.targets is not None
        try:
            replaced = network.loss(Replacement(network, [self.group]).run(batch).output, batch)
        except AcausalReplacement:
            self.runs = False
            return
        assert isinstance(replaced, Tensor)
        self.extra += float((replaced - clean).double().sum())
        self.targets += int((batch.targets != -100).sum())

    def fvu(self) -> float | None:
        shares = []
        for s, (_, total, squares) in self.moments.items():
            variance = squares - float(total.square().sum()) / self.n_rows
            shares.append(self.missed[s] / variance if variance > 0 else math.nan)
        return _finite(sum(shares) / len(shares))

    def l0(self) -> float | None:
        return _finite(self.occurrences / self.n_rows)

    def delta_loss(self) -> float | None:
        return _finite(self.extra / self.targets) if self.runs and self.targets else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
