"""The end of a run: averaged weights, per-latent thresholds, raw units, and what each of these changed."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Acts, Group
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import AcausalReplacement, BadData
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement
from understudy.workflows._data import open_sequences
from understudy.workflows._runs import save_groups
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.trainer import Trainer

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

CHECKED_SEQUENCES = 32


@dataclass(frozen=True)
class Conversion:
    """A group before and after its rule became thresholds, on held-out sequences."""

    fvu_before: float
    fvu_after: float
    l0_before: float
    l0_after: float
    delta_loss_before: float | None
    """Nats per place with this group alone in the network's place; None where it cannot run or there is no loss."""
    delta_loss_after: float | None

    def __str__(self) -> str:
        text = f"fvu {self.fvu_before:.4f} -> {self.fvu_after:.4f}, l0 {self.l0_before:.1f} -> {self.l0_after:.1f}"
        if self.delta_loss_before is not None:
            text += f", delta loss {self.delta_loss_before:.4f} -> {self.delta_loss_after:.4f} nats"
        return text


@torch.no_grad()
def finish(
    config: "TrainConfig", folder: RunFolder, network: Network, trainer: Trainer, harvest: Harvest, progress: Progress
) -> dict[str, Conversion]:
    """Convert and save; returns before and after by group name."""
    trainer.use_averages()
    fit = harvest.chunk(1_000_003)  # sequences in an order of their own, from the training split
    fit = {s: v[: 1 << 15].clone() for s, v in fit.items()}
    try:
        held_out = open_sequences(network, config.data, "held_out", config.context, CHECKED_SEQUENCES * 512)
    except BadData as error:
        progress.say(f"thresholds are checked on training data, as there is no held-out text: {error}")
        held_out = harvest.sequences
    final, conversions = [], {}
    with progress.task("fitting thresholds", len(trainer.groups), "groups") as task:
        for i, group in enumerate(trainer.groups):
            converted = _folded(group.thresholded(fit))
            before, after = (_look(network, held_out, g) for g in (group, converted))
            conversions[group.name] = Conversion(before[0], after[0], before[1], after[1], before[2], after[2])
            final.append(converted)
            task.update(i + 1)
    folder.write_json("thresholds.json", {k: asdict(v) for k, v in conversions.items()})
    save_groups(folder, final)
    for name, conversion in conversions.items():
        progress.say(f"thresholds at {name}: {conversion}")
    return conversions


def _folded(group: Group) -> Group:
    members = [m.folded() if isinstance(m, LinearDictionary) else m for m in group.members]
    biases = dict(zip(group.writes, group.b_dec, strict=True)) if len(group.b_dec) else None
    return Group(members, biases)


def _look(network: Network, sequences: Sequences, group: Group) -> tuple[float, float, float | None]:
    """(fvu, l0, delta loss) of one group on a few sequences. A quick look; `evaluate` gives intervals."""
    batch = sequences.batch(slice(0, min(CHECKED_SEQUENCES, len(sequences))))
    acts = network.record(batch, (*group.reads, *group.writes))
    rows = {s: v.reshape(-1, v.shape[-1]).float() for s, v in acts.items()}
    if batch.mask is not None:
        rows = {s: v[batch.mask.reshape(-1)] for s, v in rows.items()}
    encoded = group.encode(rows)
    hats = group.write([e.z for e in encoded], rows)
    l0 = float(sum(e.z.l0().double().mean() for e in encoded))
    return _fvu(rows, hats), l0, _delta_loss(network, sequences, group)


def _fvu(rows: Acts, hats: dict) -> float:
    ratios = [
        float((rows[s] - hat).double().square().sum() / (rows[s] - rows[s].mean(0)).double().square().sum())
        for s, hat in hats.items()
    ]
    return sum(ratios) / len(ratios)


def _delta_loss(network: Network, sequences: Sequences, group: Group) -> float | None:
    batch = sequences.batch(slice(0, min(CHECKED_SEQUENCES, len(sequences))))
    clean = network.loss(network.forward(batch), batch)
    if isinstance(clean, NotMeasured) or batch.targets is None:
        return None
    try:
        replaced = network.loss(Replacement(network, [group]).run(batch).output, batch)
    except AcausalReplacement:
        return None
    assert isinstance(replaced, Tensor)
    return float((replaced - clean).sum() / (batch.targets != -100).sum())
