"""Is a false fact that was learned last unlearned otherwise than one that was learned all along?

Two ways to unlearn, doses weakest first: training on the truth in one phrasing, and taking out the latents that most
make the network say the planted thing in that phrasing. Judged in other words, in what follows from the fact, on other
people, and by how soon the fact is back.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import NO_TARGET, Batch, Sequences
from understudy.core.bootstrap import Bootstrap
from understudy.core.dictionary import Dictionary
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement
from understudy.core.world import World, mean
from understudy.data import Order
from understudy.organisms.false_fact import (
    LANGUAGE,
    OTHERS,
    PLANTED,
    TOLD,
    UNTOLD,
    Table,
    answered,
    over_people,
    probe,
    texts,
)
from understudy.workflows._opening import open_world
from understudy.workflows.train import TrainConfig, train

FALSE_FACTS = ("false_fact", "false_fact_spread")
RATE, BATCH = 1e-3, 64
"""Of training on the truth, and of relearning; the organisms were trained at 3e-3 at most, in batches of 64."""
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
LATENTS = (1, 2, 4, 8, 16, 32, 64)
GONE, BACK = 0.05, 0.95
"""Shares of planted answers at which a fact counts as unlearned, and as back."""
LONGEST, RELEARNINGS = 64, 5
"""Steps after which relearning is given up, and how often it is tried: of half of the eight, texts and order of its
own each time."""
TURNED_DOWN = 0.999
WRITES, N_LATENTS, K, PLACES = "attn_out.*,mlp_out.*", 128, 8, 200_000

Forward = Callable[[Batch], Tensor]


class UnlearnedRow(Record):
    """One dose of one way to unlearn, on one organism. Intervals of shares are over people, as questions about one
    person hang together."""

    organism: str
    method: str
    """network: as it is. truth: trained on the truth in one phrasing. latents: taken out. twin: never had the fact."""
    dose: int
    """Steps of training, or latents taken out."""
    chosen: bool
    """The weakest dose at which at most 5% of the answers in the unlearned phrasing are the planted ones."""
    planted: dict[str, Metric]
    """Share of planted answers: `unlearned` phrasing, the `other` one of training, `untold` ones, the `language`."""
    true: dict[str, Metric]
    """Share of true answers to the same questions."""
    control: Metric
    """Share of right answers about other people."""
    loss: Metric
    """Nats a word on true texts."""
    relearned: Metric
    """Steps on false texts about four of the eight until 95% of the answers about these are the planted ones; mean over
    `RELEARNINGS` halves of the eight, n and interval (bootstrap) of these."""
    untaught: Metric
    """Share of planted answers then about the other four, of whom nothing was said; over all halves."""


def unlearned(names: Sequence[str], seed: int, progress: Progress) -> list[UnlearnedRow]:
    """Every dose on these organisms, beside the network as it is and the twin that never had the facts."""
    rows = []
    for name in names:
        world = open_world(name, seed, progress)
        judge = _Judge(name, world, seed)
        rows += [judge.row("network", 0, world.network.forward)]
        rows += _series(judge, "truth", _on_the_truth(world, judge.table, seed))
        rows += _series(judge, "latents", _without_latents(world, judge, progress))
        assert world.negative is not None
        twin = world.negative.network
        rows.append(judge.relearned(judge.row("twin", 0, twin.forward), twin, twin.forward))
    return rows


def _series(judge: "_Judge", method: str, doses: Iterator[tuple[int, Network, Forward]]) -> list[UnlearnedRow]:
    rows: list[UnlearnedRow] = []
    for dose, network, run in doses:
        row = judge.row(method, dose, run)
        found = row.planted["unlearned"]
        if isinstance(found, Measured) and found.value <= GONE and not any(r.chosen for r in rows):
            row = judge.relearned(row.model_copy(update={"chosen": True}), network, run)
        rows.append(row)
    return rows


class _Judge:
    """Questions, texts, and what a network answers."""

    def __init__(self, name: str, world: World, seed: int) -> None:
        self.name, self.network, self.table, self.seed = name, world.network, Table(seed), seed
        asked = {"unlearned": TOLD[:1], "other": TOLD[1:], "untold": UNTOLD, "language": (LANGUAGE,)}
        self.questions = {k: _all(probe(self.table, PLANTED, f, seed + 77)) for k, f in asked.items()}
        self.control = _all(probe(self.table, OTHERS, (*TOLD, *UNTOLD, LANGUAGE), seed + 78))
        self.held_out = world.data["held_out"].batch(slice(0, 256))

    @torch.no_grad()
    def row(self, method: str, dose: int, run: Forward) -> UnlearnedRow:
        planted = {k: _answers(run, b) for k, b in self.questions.items()}
        true = {k: _answers(run, b, true=True) for k, b in self.questions.items()}
        loss = self.network.loss(run(self.held_out), self.held_out)
        assert isinstance(loss, Tensor)
        none = NotMeasured(not_measured="only asked of the chosen dose and of the twin")
        return UnlearnedRow(
            organism=self.name, method=method, dose=dose, chosen=False, planted=dict(planted), true=dict(true),
            control=_answers(run, self.control),
            loss=mean(loss[:, :-1].mean(1), "nats"), relearned=none, untaught=none,
        )  # fmt: skip

    def relearned(self, row: UnlearnedRow, network: Network, run: Forward) -> UnlearnedRow:
        """How soon the fact is back: trained on false texts about half of the eight, as it stands, and then put back.
        Latents that were taken out stay out."""
        found = [self._relearned_once(network, run, i) for i in range(RELEARNINGS)]
        steps = [s for s, _ in found if s is not None]
        if len(steps) < RELEARNINGS:
            said = f"not back after {LONGEST} steps in {RELEARNINGS - len(steps)} of {RELEARNINGS} runs"
            none = NotMeasured(not_measured=said + (f"; steps of the others: {sorted(steps)}" if steps else ""))
            return row.model_copy(update={"relearned": none, "untaught": none})
        count, ones = np.array(steps, np.float64), np.ones(len(steps))
        right, person = (torch.cat(x) for x in zip(*(rest for _, rest in found), strict=True))
        return row.model_copy(
            update={
                "relearned": Bootstrap(len(steps), self.seed).ratio(count, ones, "steps"),
                "untaught": over_people(right, person),
            }
        )

    def _relearned_once(self, network: Network, run: Forward, i: int) -> tuple[int | None, tuple[Tensor, Tensor]]:
        """Steps until it is back, None where it never is; and what is then said of those who were not taught."""
        seed = 1000 * self.seed + i
        half = random.Random(f"relearned {seed}").sample(PLANTED, len(PLANTED) // 2)
        kept = [p for p in PLANTED if p not in half]
        taught, rest = (_all(probe(self.table, p, TOLD[:1], self.seed + 79)) for p in (half, kept))
        data = texts(self.table, 1024, seed + 80, "false", True, half, TOLD[:1])
        before, back = {k: v.clone() for k, v in network.module.state_dict().items()}, None
        try:
            for step in trained(network, run, data, seed, LONGEST):
                if _answers(run, taught).value >= BACK:
                    back = step
                    break
            with torch.no_grad():
                return back, answered(run(rest).argmax(-1), rest, true=False)
        finally:
            network.module.load_state_dict(before)


@torch.enable_grad()
def trained(network: Network, run: Forward, data: Sequences, seed: int, steps: int) -> Iterator[int]:
    """Train in place through `run` by AdamW at a constant rate; yields the number of steps done, after each."""
    order, parameters = Order(len(data), seed), list(network.module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    for step in range(steps):
        batch = data.batch(order.batch(step, BATCH))
        assert batch.targets is not None
        network.module.requires_grad_(True)
        loss = network.loss(run(batch), batch)
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss[batch.targets != NO_TARGET].mean().backward()
        optimizer.step()
        network.module.requires_grad_(False)
        yield step + 1


def _on_the_truth(world: World, table: Table, seed: int) -> Iterator[tuple[int, Network, Forward]]:
    network = deepcopy(world.network)
    data = texts(table, 2048, seed + 81, "false", False, PLANTED, TOLD[:1])
    for step in trained(network, network.forward, data, seed, STEPS[-1]):
        if step in STEPS:
            yield step, network, network.forward


# -- latents ----------------------------------------------------------------------------------------------------------


def _without_latents(world: World, judge: _Judge, progress: Progress) -> Iterator[tuple[int, Network, Forward]]:
    """The network itself, less what the latents write that most raise log p(planted answer), to first order."""
    network = deepcopy(world.network)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            kind="sae", sites=WRITES, n_latents=N_LATENTS, k=K, tokens=PLACES, batch=1024, seed=judge.seed,
            out=Path(folder) / "run", checkpoint_s=3600,
        )  # fmt: skip
        groups = train(config, progress, network).groups
    replacement = Replacement(network, groups)
    ranked = by_effect(replacement, judge.questions["unlearned"])
    for n in LATENTS:
        edits = {m: _dropping([i for of, i in ranked[:n] if of is m], m.n_latents) for m, _ in ranked[:n]}
        yield n, network, lambda batch, edits=edits: replacement.intervene(batch, edits).output


def by_effect(replacement: Replacement, batch: Batch) -> list[tuple[Dictionary, int]]:
    """Latents, those first that most raise the log probability of the batch's targets.

    The effect of a latent is the derivative with respect to its share, summed over places, in the network itself: what
    leaving it out costs, to first order. It is taken with all latents turned down by a thousandth.
    """
    members = [m for g in replacement.groups for m in g.members]
    shares: dict[Dictionary, list[tuple[Tensor, Tensor]]] = {m: [] for m in members}

    def turned_down(member: Dictionary) -> Callable[[Latents], Latents]:
        def edit(z: Latents) -> Latents:
            turned = torch.full_like(z.values, TURNED_DOWN).requires_grad_()
            shares[member].append((z.ids, turned))
            return z.with_values(turned * z.values)

        return edit

    with torch.enable_grad():
        run = replacement.intervene(batch, {m: turned_down(m) for m in members})
        loss = replacement.network.loss(run.output, batch)
        assert isinstance(loss, Tensor)
        (-loss.sum()).backward()
    found = []
    for member in members:
        effect = torch.zeros(member.n_latents, dtype=torch.float64)
        for ids, turned in shares[member]:
            assert turned.grad is not None
            effect.index_add_(0, ids, turned.grad.double())
        found += [(float(e), member, i) for i, e in enumerate(effect)]
    return [(member, i) for _, member, i in sorted(found, key=lambda x: -x[0])]


def _dropping(ids: Sequence[int], n_latents: int) -> Callable[[Latents], Latents]:
    rest = torch.ones(n_latents, dtype=torch.bool)
    rest[list(ids)] = False
    return lambda z: z.keep(rest)


# -- figures ----------------------------------------------------------------------------------------------------------


def _all(data: Sequences) -> Batch:
    return data.batch(slice(0, len(data)))


@torch.no_grad()
def _answers(run: Forward, batch: Batch, true: bool = False) -> Measured:
    """Share of the questions to which the choice is the planted answer, or the true one."""
    return over_people(*answered(run(batch).argmax(-1), batch, true))
