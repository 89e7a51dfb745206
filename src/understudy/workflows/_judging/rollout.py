"""Rollout: the understudy writes on its own for many tokens, and the clean network says how likely it finds that."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.records.scorecard import Rollout
from understudy.core.replacement import Replacement
from understudy.metrics import ArmSums, Bootstrap
from understudy.workflows._judging.card import positions

PROMPT_TOKENS, NEW_TOKENS, SHOWN = 32, 96, 4


@torch.no_grad()
def rollout(
    network: Network,
    groups: Sequence[Group],
    sequences: Sequences,
    picked: Tensor,
    seed: int,
    progress: Progress,
    skip_first: int = 0,
) -> Rollout:
    """Sample at temperature 1 from the same prompts and random numbers, with and without the understudy.

    skip_first: places at the start of each text that keep the network's own activations.
    """
    if network.tokenizer is None:
        return _not_run(NotMeasured(not_measured=f"{network.name} does not write text"))
    ids = sequences.batch(picked).inputs["input_ids"]
    length = min(PROMPT_TOKENS, ids.shape[1] // 4)
    new = min(NEW_TOKENS, ids.shape[1] - length)
    prompts = ids[:, :length]
    replacement = Replacement(network, groups, skip_first)
    with progress.task("free-running rollout", 2, "arms") as task:
        own = network.generate(prompts, new, seed)
        task.update(1)
        with replacement.installed():
            replaced = network.generate(prompts, new, seed)
        task.update(2)
    if isinstance(own, NotMeasured) or isinstance(replaced, NotMeasured):
        return _not_run(
            own if isinstance(own, NotMeasured) else NotMeasured(not_measured="the understudy cannot write")
        )
    sums = [_judge(network, name, text, length) for name, text in (("network", own), ("replaced", replaced))]
    bootstrap = Bootstrap(len(prompts))
    return Rollout(
        prompts=len(prompts), prompt_length=length, length=new,
        loss_of_network_text=sums[0].loss(bootstrap), loss_of_replaced_text=sums[1].loss(bootstrap),
        delta_loss=sums[1].delta_loss(sums[0], bootstrap), by_position=tuple(positions(sums[0], sums[1], bootstrap)),
        samples=tuple(_samples(network, prompts, own, replaced, length)),
    )  # fmt: skip


def _not_run(reason: NotMeasured) -> Rollout:
    return Rollout(loss_of_network_text=reason, loss_of_replaced_text=reason, delta_loss=reason)


def _judge(network: Network, name: str, ids: Tensor, length: int) -> ArmSums:
    """Loss of the clean network at the generated tokens; position 0 is the first of them."""
    sums = ArmSums(name, len(ids))
    for i in range(0, len(ids), 16):
        part = ids[i : i + 16]
        targets = torch.full_like(part, -100)
        targets[:, length - 1 : -1] = part[:, length:]
        batch = Batch({"input_ids": part}, targets=targets)
        loss = network.loss(network.forward(batch), batch)
        assert isinstance(loss, Tensor)
        position = (torch.arange(part.shape[1]) - (length - 1)).clamp(min=0).expand(part.shape)
        sums.add(torch.arange(i, i + len(part)), targets != -100, loss=loss, position=position)
    return sums


def _samples(network: Network, prompts: Tensor, own: Tensor, replaced: Tensor, length: int) -> list[dict[str, str]]:
    decode = network.tokenizer.decode
    return [
        {"prompt": decode(p), "network": decode(a[length:]), "understudy": decode(b[length:])}
        for p, a, b in zip(prompts[:SHOWN], own, replaced)
    ]
