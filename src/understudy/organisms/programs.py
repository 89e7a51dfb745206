"""Compiled programs: transformers whose every weight is known, with their features and edges."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import product

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.world import Check, Truth, World, share
from understudy.organisms import _seeds
from understudy.organisms._compile import Compiled, compile_program, shuffled
from understudy.organisms._network import Listed, OrganismNetwork, hits
from understudy.organisms._rasp import Label, Program, Variable
from understudy.organisms._transformer import parts, sites

Words = Sequence[Label]
Answer = Callable[[Words], Sequence[Label | None]]
"""What the output should be after each word, in plain Python, without the compiler; None where nothing is asked."""
LOST = 0.5
"""Share of uncommon answers that may be right without the mechanism."""


def sort(seed: int = 0, rotation: int | None = None) -> World:
    """Put distinct words in order. Rank = how many words are not larger; place p then reads the word of rank p."""
    p = Program(tuple(range(8)), 6)
    rank = p.width("rank", p.tokens, p.tokens, lambda q, k: k <= q)  # pyright: ignore[reportOperatorIssue]
    p.output = p.attend("sorted", p.positions, rank, lambda q, k: q == k, p.tokens)
    inputs = _drawn(2048, seed, lambda g: torch.randperm(8, generator=g)[:6])
    planted = "rank = number of words not larger (attention, MLP); place p copies the word of rank p (attention)"
    return _world("sort", planted, p, inputs, lambda words: sorted(words), rank, seed, rotation)  # pyright: ignore


def histogram(seed: int = 0, rotation: int | None = None) -> World:
    """How often the word at each place occurs in the sequence. All 4096 inputs."""
    p = Program(tuple("abcd"), 6)
    p.output = p.width("count", p.tokens, p.tokens, lambda q, k: q == k)
    inverse = p.ops[0].out
    planted = "attention to equal words and the mark gives 1 / (1 + count); an MLP turns it into the count"
    inputs = _all(4, 6, seed)
    return _world("histogram", planted, p, inputs, lambda w: [w.count(x) for x in w], inverse, seed, rotation)


def fraction_previous(seed: int = 0, rotation: int | None = None) -> World:
    """Which fraction of the words so far is x."""
    p = Program(tuple("xabc"), 6)
    levels = sorted({Fraction(k, n) for n in range(1, 7) for k in range(n + 1)})
    by_level = {float(f): str(f) for f in levels}
    x = p.tokens.only("x")
    fraction = p.mean("fraction", p.positions, p.positions, lambda q, k: 1 <= k <= q, x, list(by_level))  # pyright: ignore
    p.output = p.bin("answer", fraction, by_level)
    planted = "attention to the words so far averages `token=x`; an MLP tells which of 13 fractions it is"

    def answer(words: Words) -> list[Label | None]:
        return [str(Fraction(sum(w == "x" for w in words[: i + 1]), i + 1)) for i in range(len(words))]

    return _world("fraction_previous", planted, p, _all(4, 6, seed), answer, fraction, seed, rotation)


def parentheses(seed: int = 0, rotation: int | None = None) -> World:
    """Whether the parentheses so far are balanced. All 1024 inputs."""
    p = Program(("(", ")"), 10)
    levels = sorted({k / n for n in range(1, 11) for k in range(n + 1)})

    def so_far(q: Label, k: Label) -> bool:
        return 1 <= k <= q  # pyright: ignore[reportOperatorIssue]

    opened = p.mean("opened", p.positions, p.positions, so_far, p.tokens.only("("), levels)
    depth = p.bin("depth", opened, {x: "below" if x < 0.5 else "zero" if x == 0.5 else "above" for x in levels})
    fell = p.mean("fell", p.positions, p.positions, so_far, depth.only("below"), levels)
    ever = p.bin("ever_below", fell, {x: "yes" if x else "no" for x in levels})
    p.output = p.map("balanced", lambda d, e: "yes" if (d, e) == ("zero", "no") else "no", depth, ever)
    planted = "share of `(` so far gives the sign of the depth; balanced: depth 0 and never below 0 before"

    def answer(words: Words) -> list[Label | None]:
        depths = [sum(1 if w == "(" else -1 for w in words[: i + 1]) for i in range(len(words))]
        return ["yes" if d == 0 and min(depths[: i + 1]) >= 0 else "no" for i, d in enumerate(depths)]

    return _world("parentheses", planted, p, _all(2, 10, seed), answer, depth, seed, rotation)


def induction(seed: int = 0, rotation: int | None = None) -> World:
    """What followed this word when it was last seen. A random segment without repeats, twice."""
    p = Program(tuple("abcdefghijkl"), 16, causal=True)
    previous = p.attend("previous", p.positions, p.positions, lambda q, k: k == q - 1, p.tokens)  # pyright: ignore
    p.output = p.attend("next", p.tokens, previous, lambda q, k: q == k, p.tokens)
    planted = "one head copies the previous word; the next head finds the place whose previous word is this one"

    def draw(g: torch.Generator) -> Tensor:
        return torch.randperm(12, generator=g)[:8].repeat(2)

    def answer(words: Words) -> list[Label | None]:
        return [words[words.index(w) + 1] if w in words[:i] else None for i, w in enumerate(words)]

    return _world("induction", planted, p, _drawn(2048, seed, draw), answer, previous, seed, rotation)


def _all(n_words: int, length: int, seed: int) -> Tensor:
    """Every input, in an order of the seed."""
    every = torch.tensor(list(product(range(n_words), repeat=length)))
    return every[torch.randperm(len(every), generator=_seeds.generator(seed))]


def _drawn(n: int, seed: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    generator = _seeds.generator(seed)
    return torch.stack([draw(generator) for _ in range(n)])


def _world(
    name: str, planted: str, program: Program, words: Tensor, answer: Answer, mechanism: Variable, seed: int,
    rotation: int | None,
) -> World:  # fmt: skip
    """mechanism: the variable whose exchange for another sequence's must cost the answers."""
    made = compile_program(program, rotation)
    data = _data(program, words, answer)
    network = _network(name, made, data)
    every = Listed(_join(program, words, answer))
    checks = (
        Check("answers right", lambda: _right(network, every), at_least=1.0),
        Check("largest error of a feature's reading", lambda: _reading_error(network, made.truth, every), at_most=1e-3),
        Check(
            f"uncommon answers right with another sequence's `{mechanism.name}`",
            lambda: _swapped(network, made.truth, mechanism, every),
            at_most=LOST,
        ),
    )
    return World(name, planted, network, data, made.truth, checks, partial(_twin, name, program, data, every, seed))


def _twin(name: str, program: Program, data: dict[str, Listed], every: Listed, seed: int) -> World:
    made = compile_program(program)
    shuffled(made.module, seed + 1)
    network = _network(f"{name}-shuffled", made, data)
    checks = (Check("uncommon answers right", lambda: _uncommon(network, every), at_most=LOST),)
    return World(f"{name}-shuffled", "nothing: every weight matrix permuted", network, data, Truth(), checks)


def _network(name: str, made: Compiled, data: dict[str, Listed]) -> OrganismNetwork:
    return OrganismNetwork(
        made.module, name, data, sites(made.module), output="logits", parts=parts(made.module),
        aside=("embed", "positions", "unembed"), head="unembed", context=made.program.length + 1,
    )  # fmt: skip


def _data(program: Program, words: Tensor, answer: Answer) -> dict[str, Listed]:
    n = len(words) * 3 // 4
    return {
        "train": Listed(_join(program, words[:n], answer)),
        "held_out": Listed(_join(program, words[n:], answer)),
    }


def _join(program: Program, words: Tensor, answer: Answer) -> Batch:
    """Inputs with the mark in front, and what the answer says of each place."""
    assert program.output is not None
    index = {label: i for i, label in enumerate(program.output.labels)} | {None: -100}
    said = [answer([program.vocabulary[i] for i in row]) for row in words.tolist()]
    targets = torch.tensor([[-100, *(index[x] for x in row)] for row in said])
    ids = torch.cat([torch.zeros(len(words), 1, dtype=torch.long), words + 1], 1)
    return Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), targets)


def _right(network: Network, sequences: Listed) -> Measured:
    right, n = hits(network, sequences)
    return exact(right / n, "fraction", n)


@torch.no_grad()
def _reading_error(network: Network, truth: Truth, sequences: Listed) -> Measured:
    """Over every feature, site where it is present, and place: |activation . direction - what the program says|."""
    batch = sequences.batch(slice(0, 512))
    assert truth.values is not None
    values, worst = truth.values(batch), 0.0
    site_list = list(dict.fromkeys(s for f in truth.features for s in f.sites))
    read = network.record(batch, site_list)
    for i, feature in enumerate(truth.features):
        for site in feature.sites:
            worst = max(worst, float((read[site] @ feature.direction - values[..., i]).abs().max()))
    return exact(worst, "units", batch.n_sequences)


def _swapped(network: Network, truth: Truth, mechanism: Variable, sequences: Listed) -> Measured:
    """Every sequence with the next one's values of a variable, where it is written."""
    features = [truth.feature(name) for name in mechanism.features]
    directions = torch.stack([f.direction for f in features])

    def swap(value: Tensor, call: int) -> Tensor:
        part = value @ directions.T @ directions
        return value - part + part.roll(1, 0)

    with network.edited({features[0].site: swap}):
        return _uncommon(network, sequences)


@torch.no_grad()
def _uncommon(network: Network, sequences: Listed) -> Measured:
    """Share of right answers among those that are not the commonest answer, which needs no mechanism."""
    batch = sequences.batch(slice(0, len(sequences)))
    assert batch.targets is not None
    asked = batch.targets[batch.targets != -100]
    counted = (batch.targets != -100) & (batch.targets != asked.mode().values)
    right = network.choice(network.forward(batch)) == batch.targets
    return share(int(right[counted].sum()), int(counted.sum()))  # pyright: ignore
