"""Rollout: the understudy writes on its own for many tokens, and the clean network says how likely it finds that."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.batch import Batch
from ...core.dictionary import Group
from ...core.network import Network
from ...core.records.metric import NotMeasured
from ...core.records.progress import Progress
from ...core.records.scorecard import Positions, Rollout
from ...core.replacement import Replacement
from ...metrics import ArmSums, Bootstrap
from ...metrics.behaviour import POSITION_NAMES
from .._data import Sequences

PROMPT_TOKENS, NEW_TOKENS, SHOWN = 32, 96, 4


@torch.no_grad()
def rollout(
    network: Network, groups: Sequence[Group], sequences: Sequences, picked: Tensor, seed: int, progress: Progress
) -> Rollout:
    """Sample at temperature 1 from the same prompts and random numbers, with and without the understudy."""
    generate = getattr(network, "generate", None)
    if generate is None:
        return Rollout(delta_loss=NotMeasured(not_measured=f"{network.name} does not generate"))
    ids = sequences.batch(picked).inputs["input_ids"]
    length = min(PROMPT_TOKENS, ids.shape[1] // 4)
    new = min(NEW_TOKENS, ids.shape[1] - length)
    prompts = ids[:, :length]
    replacement = Replacement(network, groups)
    with progress.task("free-running rollout", 2, "arms") as task:
        own = generate(prompts, new, seed)
        task.update(1)
        with replacement.installed():
            replaced = generate(prompts, new, seed)
        task.update(2)
    sums = [_judge(network, name, text, length) for name, text in (("network", own), ("replaced", replaced))]
    bootstrap = Bootstrap(len(prompts))
    rows = []
    for name in POSITION_NAMES:
        part = f"position/{name}"
        if sums[0].count[sums[0].slices.index(part)].any():
            first, _, last = name.partition("-")
            rows.append(Positions(
                first=int(first), last=int(last or first),
                loss_clean=sums[0].loss(bootstrap, part), loss_replaced=sums[1].loss(bootstrap, part),
                delta_loss=sums[1].delta_loss(sums[0], bootstrap, part),
            ))  # fmt: skip
    return Rollout(
        prompts=len(prompts), prompt_length=length, length=new,
        loss_of_network_text=sums[0].loss(bootstrap), loss_of_replaced_text=sums[1].loss(bootstrap),
        delta_loss=sums[1].delta_loss(sums[0], bootstrap), by_position=rows,
        samples=_samples(network, prompts, own, replaced, length),
    )  # fmt: skip


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


def _samples(network: Any, prompts: Tensor, own: Tensor, replaced: Tensor, length: int) -> list[dict[str, str]]:
    decode = network.tokenizer.decode if getattr(network, "tokenizer", None) is not None else None
    if decode is None:
        return []
    return [
        {"prompt": decode(p), "network": decode(a[length:]), "understudy": decode(b[length:])}
        for p, a, b in zip(prompts[:SHOWN], own, replaced)
    ]


