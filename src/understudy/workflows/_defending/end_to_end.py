"""Finished dictionaries, all in the network's place at once, trained on by what they do to its output on clean text."""

from collections.abc import Sequence
from copy import deepcopy

import torch

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement
from understudy.data import Order
from understudy.workflows._defending.problem import parameters

STEPS, BATCH, RATE = 100, 16, 3e-3


def end_to_end(
    network: Network, groups: Sequence[Group], sequences: Sequences, seed: int, progress: Progress, steps: int = STEPS
) -> list[Group]:
    """Copies of thresholded groups after `steps` of Adam on KL(network || replacement), nats a place. Thresholds stay;
    the rate rises to 3e-3 over a tenth of the steps and falls to 0.

    Source: Karvonen 2025, arXiv:2503.17272: a short fine-tune of finished SAEs on KL; theirs one dictionary in place at
    a time, here all of them.
    """
    tuned = list(deepcopy(groups))
    replacement = Replacement(network, tuned)
    weights = [p.requires_grad_() for g in tuned for p in g.parameters()]
    optimizer = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    order = Order(len(sequences), seed)
    with progress.task("training dictionaries together", steps, "steps") as task:
        for step in range(steps):
            batch = sequences.batch(order.batch(step, BATCH))
            with torch.no_grad():
                own = network.forward(batch)
            loss = network.divergence(own, replacement.run(batch).output, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            task.update(step + 1, f"KL {float(loss.detach()):.3f}")
    for p in weights:
        p.requires_grad_(False)
    return tuned


def flops(network: Network, groups: Sequence[Group], places: int) -> float:
    """For each place 6 x parameters of dictionaries and network, and 2 x the network's for its own output."""
    dictionaries = sum(p.numel() for g in groups for p in g.parameters())
    return float(places) * (6 * dictionaries + 8 * parameters(network))
