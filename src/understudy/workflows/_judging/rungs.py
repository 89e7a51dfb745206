"""The ladder that comes with the package, scored at the very places of a scorecard."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import NO_TARGET, Sequences
from understudy.core.network import Network
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import Progress, Task
from understudy.data import Packed
from understudy.metrics import ArmSums, Bootstrap, equivalent_compute
from understudy.networks import rungs
from understudy.workflows._opening import open_network

AT_ONCE = 8


@dataclass(frozen=True)
class LadderSums:
    """Losses of every rung in nats, summed over the scored places of each sequence."""

    flops: np.ndarray
    losses: np.ndarray
    """[rungs, n_sequences]."""

    def compute(self, arm: ArmSums, bootstrap: Bootstrap) -> Metric:
        """The compute at which the ladder reaches an arm's loss; its share of the places' bootstrap is the same."""
        if "loss" not in arm.sums:
            return NotMeasured(not_measured="no loss")
        return equivalent_compute(bootstrap, arm.sums["loss"][0], self.losses, self.flops, arm.count[0])


def ladder_sums(network: Network, sequences: Sequences, picked: Tensor, progress: Progress) -> LadderSums | NotMeasured:
    """Run every annealed rung on the sequences `picked`. NotMeasured where rungs cannot read what the network reads."""
    ladder = rungs()
    if len(ladder) < 2:
        return NotMeasured(not_measured="this copy came without the ladder of networks")
    if not isinstance(sequences, Packed) or network.tokenizer is None:
        return NotMeasured(not_measured="the ladder reads text, and this network runs on sequences of its own")
    first = open_network(ladder[0].name)
    if not same_tokens(network, first):
        return NotMeasured(
            not_measured=f"{network.name} has another tokenizer than the ladder, whose losses per token are therefore "
            "others: `understudy ladder --rungs` compares a family of its own kind, per byte"
        )
    if sequences.tokens.shape[1] > first.max_context:
        return NotMeasured(not_measured=f"the ladder reads rows of {first.max_context} tokens at most")
    losses = np.zeros((len(ladder), len(picked)))
    with progress.task("running the ladder", len(ladder) * len(picked), "sequences") as task:
        for i, rung in enumerate(ladder):
            own = open_network(rung.name).to(network.device)
            nats = row_losses(own, sequences, picked, task, i * len(picked))
            losses[i] = nats.sum(1).numpy()
    return LadderSums(np.array([r.flops for r in ladder]), losses)


@torch.no_grad()
def row_losses(network: Network, sequences: Sequences, picked: Tensor, task: Task, done: int = 0) -> Tensor:
    """Loss in nats at each scored place of the rows `picked`, 0 elsewhere; [rows, context], fp64 on the CPU."""
    out = []
    for at in picked.split(AT_ONCE):
        batch = sequences.batch(at).to(network.device)
        loss = network.loss(network.forward(batch), batch)
        assert isinstance(loss, Tensor)
        assert batch.targets is not None
        scored = batch.targets != NO_TARGET
        if batch.mask is not None:
            scored &= batch.mask
        out.append(loss.double().masked_fill(~scored, 0).cpu())
        done += len(at)
        task.update(done, network.name)
    return torch.cat(out)


def same_tokens(a: Network, b: Network) -> bool:
    """Whether the same text is the same ids to both: equal vocabularies, and a probe text read alike."""
    first, second = a.tokenizer, b.tokenizer
    if first is None or second is None or first.get_vocab() != second.get_vocab():
        return False
    probe = "def f(x):\n    return {'\u00e9': x + 1}  # 10 000 \u20ac\n"
    return first(probe)["input_ids"] == second(probe)["input_ids"]
