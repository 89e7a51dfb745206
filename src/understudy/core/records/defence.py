"""Defences against a backdoor, as plain data: what each costs on clean text, and what it leaves of the attack."""

from understudy.core.records.metric import Metric, Record


class DefenceRow(Record):
    """One dose of one defence, judged on sequences that nothing was fitted or chosen on."""

    defence: str
    """`network`: as it is. `clean twin`: one that never had the backdoor."""
    dose: str
    """How strong: latents kept, neurons pruned, learning rate."""
    budget: float | None
    """The strongest dose whose clean loss rises by at most this (nats, on clean text apart); None: not chosen so."""
    delta_loss: Metric
    """Clean loss minus the network's own, paired."""
    attack: Metric
    """Share of chances at which the attack succeeds."""
    than_graph: Metric
    """That minus the graph's at the same budget, paired: above 0 the graph is better."""
    after_trigger: Metric
    """Loss on text that goes on after the trigger as if nothing were: what a network without backdoor does well."""
    flops: float
    """What it took: 6 x parameters x places trained on, and 2 x for places only recorded."""


class Defences(Record):
    """All doses, and the strongest of each defence within each budget."""

    organism: str
    seed: int
    sequences: int
    flops: float
    """What the network itself was trained with."""
    doses: list[DefenceRow]
    chosen: list[DefenceRow]
