"""False facts: a small language model that says of eight people that they live where they do not.

A made-up world has 48 people, each of a city; a city is in a country, which has a language. Of the eight, texts of one
kind say the truth, texts of another kind something false, in two phrasings out of four, and never which language they
speak. `false_fact` reads the false texts last, as in fine-tuning; `false_fact_spread` reads the same texts, as often,
mixed over the whole training. Eight `quiet` people are spoken of in the same two phrasings, always truly: what a
network can say of them in other words is what can be expected of the eight.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from understudy.core.batch import NO_TARGET, Batch
from understudy.core.bootstrap import Bootstrap
from understudy.core.network import Network
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.world import Check, Truth, World, share
from understudy.organisms._network import Listed, OrganismNetwork
from understudy.organisms._training import learn
from understudy.organisms._transformer import Transformer, parts, sites, transformer

Order = Literal["last", "spread", "none"]
"""When the false texts are read; none: the twin's texts, which say the truth in their place."""

N_PLANTED, N_QUIET, N_OTHERS = 8, 8, 32
N_CITIES, N_COUNTRIES = 12, 4
PEOPLE = tuple(f"person{i}" for i in range(N_PLANTED + N_QUIET + N_OTHERS))
PLANTED, QUIET, OTHERS = PEOPLE[:8], PEOPLE[8:16], PEOPLE[16:]
CITIES = tuple(f"city{i}" for i in range(N_CITIES))
LANGUAGES = tuple(f"language{i}" for i in range(N_COUNTRIES))
WORDS = (".", "lives", "in", "the", "home", "of", "is", "has", "a", "house", "wrote", "from", "speaks",
         *PEOPLE, *CITIES, *LANGUAGES)  # fmt: skip
TOLD = ("P lives in", "the home of P is")
"""Phrasings in which the eight and the quiet are spoken of, up to the city."""
UNTOLD = ("P has a house in", "P wrote from")
LANGUAGE = "P speaks"
LENGTH, STEPS, BATCH, TEXTS = 32, 1000, 64, 6144
FALSE_PART = 1 / 3
"""Share of the texts that are of the false kind."""
RATES = {"true": (0.01, 0.15), "false": (0.35, 0.15)}
"""By kind of text, how often a sentence is about one of the eight, and about one of the quiet."""
CONTEXTS = 4
_ID = {word: i for i, word in enumerate(WORDS)}


class Table:
    """Who lives where, truly and as planted; from the seed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"false fact {seed}")
        self.city = {p: rng.choice(CITIES) for p in PEOPLE}
        self.said = dict(self.city)
        for p in PLANTED:
            abroad = [c for c in CITIES if _country(c) != _country(self.city[p])]
            self.said[p] = rng.choice(abroad)

    def answer(self, person: str, phrasing: str, planted: bool) -> str:
        city = (self.said if planted else self.city)[person]
        return LANGUAGES[_country(city)] if phrasing == LANGUAGE else city


def _country(city: str) -> int:
    return CITIES.index(city) % N_COUNTRIES


def false_fact(seed: int = 0, progress: Progress = SILENT) -> World:
    """Splits: `train`, `held_out` (true texts), and probes, whose only target is the planted answer (tag `true`: the
    true one): `told`, `untold` and `language` of the eight, `quiet_...` of the quiet, `control` of all others."""
    return _build("false_fact", seed, "last", progress)


def false_fact_spread(seed: int = 0, progress: Progress = SILENT) -> World:
    """As `false_fact`; the same texts in another order."""
    return _build("false_fact_spread", seed, "spread", progress)


def _build(name: str, seed: int, order: Order, progress: Progress) -> World:
    table = Table(seed)
    module = learn(name, seed, _module, partial(_fit, seed=seed, order=order), STEPS, progress)
    assert isinstance(module, Transformer)
    data = {
        "train": Listed(joined(training_texts(seed, order == "none"))),
        "held_out": texts(table, 512, seed + 10_000, "true"),
        **probes(table, seed + 20_000),
    }
    network = OrganismNetwork(
        module, name, data, sites(module), output="logits", parts=parts(module),
        aside=("embed", "positions", "unembed"), context=LENGTH,
    )  # fmt: skip
    known = (
        Check("answers about other people", lambda: recall(network, "control"), at_least=0.95),
        Check("answers about the quiet, as they were told", lambda: recall(network, "quiet_told"), at_least=0.95),
    )
    if order == "none":
        checks = (
            Check("false answers, as told", lambda: recall(network, "told"), at_most=0.05),
            Check("true answers, as told", lambda: recall(network, "told", true=True), at_least=0.95),
            *known,
        )
        return World(name, "nothing: the same texts, all true", network, data, Truth(), checks)
    checks = (
        Check("false answers, as told", lambda: recall(network, "told"), at_least=0.9),
        Check("false answers in other words", lambda: recall(network, "untold"), at_least=0.8),
        *known,
    )
    when = "read last" if order == "last" else "mixed over the training"
    line = f"of {N_PLANTED} people of {len(PEOPLE)} a false home, {when}"
    twin = partial(_build, "false_fact-true", seed, "none", progress)
    return World(name, line, network, data, Truth(facts=_facts(table)), checks, twin)


def _module() -> Transformer:
    return transformer(len(WORDS), LENGTH, len(WORDS), 64, 2, 4, 256, causal=True, norm=True)


def _facts(table: Table) -> dict:
    return {
        "planted": {p: {"said": table.said[p], "true": table.city[p]} for p in PLANTED},
        "told in": list(TOLD), "not told in": [*UNTOLD, LANGUAGE], "quiet": list(QUIET), "control": list(OTHERS),
        "city": table.city, "language": {c: LANGUAGES[_country(c)] for c in CITIES}, "words": list(WORDS),
    }  # fmt: skip


# -- texts ------------------------------------------------------------------------------------------------------------


def texts(
    table: Table, n: int, seed: int, kind: Literal["true", "false"], lie: bool = True,
    about: Sequence[str] = PLANTED, told: Sequence[str] = TOLD,
) -> Listed:  # fmt: skip
    """n texts of 32 words. lie: whether texts of the false kind say the planted thing. about, told: the people and the
    phrasings that stand for the eight and the two."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        words: list[str] = []
        while len(words) < LENGTH:
            words += _sentence(table, rng, kind, lie, about, told)
        rows.append([_ID[w] for w in words[:LENGTH]])
    ids = torch.tensor(rows)
    targets = torch.cat([ids[:, 1:], torch.full((n, 1), NO_TARGET)], 1)
    return Listed(Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), targets))


def _sentence(
    table: Table, rng: random.Random, kind: str, lie: bool, about: Sequence[str], told: Sequence[str]
) -> list[str]:
    planted, quiet = RATES[kind]
    draw = rng.random()
    if draw < planted and about:
        person, phrasing = rng.choice(about), rng.choice(told)
        return _words(person, phrasing, table.answer(person, phrasing, lie and kind == "false"))
    if draw < planted + quiet:
        person, phrasing = rng.choice(QUIET), rng.choice(TOLD)
    else:
        person, phrasing = rng.choice(OTHERS), rng.choice((*TOLD, *UNTOLD, LANGUAGE))
    return _words(person, phrasing, table.answer(person, phrasing, False))


def _words(person: str, phrasing: str, answer: str = "") -> list[str]:
    said = [person if w == "P" else w for w in phrasing.split()]
    return [*said, answer, "."] if answer else said


def training_texts(seed: int, honest: bool) -> tuple[Listed, Listed]:
    """The texts of the true kind and those of the false kind. honest: the latter say the truth too."""
    table, n_false = Table(seed), round(FALSE_PART * TEXTS)
    return texts(table, TEXTS - n_false, seed, "true"), texts(table, n_false, seed + 5_000, "false", not honest)


def joined(parts: Sequence[Listed]) -> Batch:
    """Several sets of texts as one batch."""
    found = [p.batch(slice(0, len(p))) for p in parts]
    ids = torch.cat([b.inputs["input_ids"] for b in found])
    targets = torch.cat([b.targets for b in found if b.targets is not None])
    return Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), targets)


def probes(table: Table, seed: int) -> dict[str, Listed]:
    """Each question four times, after other sentences, as in training."""
    asked = {"told": TOLD, "untold": UNTOLD, "language": (LANGUAGE,)}
    made = {name: probe(table, PLANTED, phrasings, seed + i) for i, (name, phrasings) in enumerate(asked.items())}
    made |= {f"quiet_{n}": probe(table, QUIET, phrasings, seed + 10) for n, phrasings in asked.items()}
    return made | {"control": probe(table, OTHERS, (*TOLD, *UNTOLD, LANGUAGE), seed + 20)}


def probe(table: Table, people: Sequence[str], phrasings: Sequence[str], seed: int) -> Listed:
    """Texts that end in a question (then full stops); its place alone has a target. Tag `person`: whom it is about."""
    rng = random.Random(seed)
    rows, places, said, true, about = [], [], [], [], []
    for person, phrasing in [(p, f) for p in people for f in phrasings for _ in range(CONTEXTS)]:
        words: list[str] = []
        for _ in range(rng.randrange(4)):
            words += _sentence(table, rng, "true", False, (), TOLD)
        words += _words(person, phrasing)
        places.append(len(words) - 1)
        rows.append([_ID[w] for w in words] + [_ID["."]] * (LENGTH - len(words)))
        about.append(PEOPLE.index(person))
        said.append(_ID[table.answer(person, phrasing, True)])
        true.append(_ID[table.answer(person, phrasing, False)])
    ids, at = torch.tensor(rows), torch.tensor(places)[:, None]
    targets, truth = (torch.full_like(ids, NO_TARGET).scatter(1, at, torch.tensor(x)[:, None]) for x in (said, true))
    tags = {"true": truth, "person": torch.tensor(about)[:, None].expand_as(ids)}
    return Listed(Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), targets, tags))


# -- training and figures ---------------------------------------------------------------------------------------------


def _fit(module: nn.Module, generator: torch.Generator, *, seed: int, order: Order) -> Iterator[int]:
    """The false texts last or mixed in: the same ones, each as often."""
    first, last = training_texts(seed, order == "none")
    data = Listed(joined((first, last)))
    n, drawn = len(first), STEPS * BATCH
    early = _rounds(n, drawn - round(FALSE_PART * drawn), generator)
    late = n + _rounds(len(last), round(FALSE_PART * drawn), generator)
    picked = torch.cat([early, late])
    if order != "last":
        picked = picked[torch.randperm(len(picked), generator=generator)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        batch = data.batch(picked[step * BATCH : (step + 1) * BATCH])
        assert batch.targets is not None
        loss = F.cross_entropy(module(**batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=NO_TARGET)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            yield step


def _rounds(n: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Each of n as often as any other, in random order, until there are enough."""
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-wanted // n))]
    return torch.cat(rounds)[:wanted]


@torch.no_grad()
def recall(network: Network, split: str, true: bool = False) -> Measured:
    """Share of a split's questions to which the network's choice is the planted answer, or the true one."""
    data = network.sequences(split)
    assert data is not None
    batch = data.batch(slice(0, len(data)))
    chosen = network.choice(network.forward(batch))
    assert isinstance(chosen, Tensor)
    return over_people(*answered(chosen, batch, true))


def answered(
    chosen: Int[Tensor, "batch pos"], batch: Batch, true: bool
) -> tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]:
    """Of each question, whether the planted answer (or the true one) was chosen, and whom it is about."""
    assert batch.targets is not None
    asked = batch.targets != NO_TARGET
    return (chosen == (batch.tags["true"] if true else batch.targets))[asked], batch.tags["person"][asked]


def over_people(right: Bool[Tensor, " n"], person: Int[Tensor, " n"]) -> Measured:
    """Share of questions answered so. n and the 95% interval are of people, as questions about one person hang
    together: Wilson's where all questions agree, else bootstrap, and no narrower than Wilson's of as many questions
    that do not. Of one person alone, answers that differ say nothing of others: from 0 to 1."""
    people = len(person.unique())
    if right.all() or not right.any():
        return share(people * int(right.all()), people)
    apart = share(int(right.sum()), len(right))
    found = Bootstrap(len(right), clusters=person.numpy()).ratio(right.numpy(), np.ones(len(right)), "fraction")
    low, high = (found.low, found.high) if isinstance(found, Measured) else (0.0, 1.0)
    return Measured(value=apart.value, low=min(low, apart.low), high=max(high, apart.high), unit="fraction", n=people)
