"""A lookup head that becomes a copying head as its table grows.

One attention head reads pairs of a key and a value and is asked for the value of one of the keys. In training a key
always has the value that a fixed table gives it, so the answer can be looked up (from the key, by the table in the
weights) or copied (from the pair in the context). A small table is learned before copying is; of a large one each key
is rare, and what serves every key wins. Which of the two was learned shows where they disagree: in `swapped` a key
stands with a value it never had. The effect is that of Chan et al. 2022 (arXiv:2205.05055) and Reddy 2024
(arXiv:2312.03002), made in one head: keys are given and random, so that matching keys carries over to new ones.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, TrueEdge, TrueFeature, Truth, World, share
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork
from understudy.organisms._training import learn
from understudy.organisms._transformer import Attention

D, N_VALUES, N_PAIRS, N_NEW = 64, 8, 12, 64
"""N_NEW: keys that are in no training sequence."""
STEPS, BATCH = 1000, 256
CHANCE = 1 / N_VALUES
STREAM, READ, HEAD, OUT = Site("stream"), Site("attn", "in"), Site("attn"), Site("unembed")
Kind = Literal["train", "swapped", "absent", "new"]


class Head(nn.Module):
    """keys, values [batch, pos] -> logits [batch, pos, N_VALUES]: one head between embeddings and read-out, nothing
    beside it. The last place is the question: a key with the value `?`."""

    def __init__(self, n_keys: int) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(n_keys + N_NEW, D), nn.Embedding(N_VALUES + 1, D)
        self.stream, self.attn = nn.Identity(), Attention(D, 1, D, causal=False)
        self.unembed = nn.Linear(D, N_VALUES, bias=False)
        with torch.no_grad():
            for table in (self.keys, self.values):
                table.weight.mul_(D**-0.5)
        self.keys.weight.requires_grad_(False)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.unembed(self.attn(self.stream(self.keys(keys) + self.values(values))))


def lookup_or_copy_16(seed: int = 0, progress: Progress = SILENT) -> World:
    """A table of 16 keys: looked up."""
    return _build(16, "lookup", seed, True, progress)


def lookup_or_copy_512(seed: int = 0, progress: Progress = SILENT) -> World:
    """A table of 512 keys: copied."""
    return _build(512, "copy", seed, True, progress)


def told_apart(n_keys: int, seed: int = 0, progress: Progress = SILENT) -> tuple[Measured, Measured]:
    """Of questions whose pair never was: share answered by the table, and by the context. Chance is 1/8 for neither
    of the two being in use."""
    network = _network(_learned(n_keys, seed, True, progress), "lookup_or_copy", n_keys, seed)
    return _answers(network, "swapped", "table"), _answers(network, "swapped", "context")


def table(n_keys: int, seed: int) -> Tensor:
    """The value of each key; of new keys too, which nothing ever uses."""
    return torch.randint(N_VALUES, (n_keys + N_NEW,), generator=_seeds.generator(1_000 * seed + n_keys))


def draw(n: int, kind: Kind, n_keys: int, values: Tensor, generator: torch.Generator) -> Batch:
    """n questions. Tags, at the last place: `table`, `context`, what either mechanism answers (-100: it has no answer).

    train: every key with its value of the table. swapped: the key in question with another. absent: the key in question
    is in no pair. new: keys of no training sequence, with values drawn at random.
    """
    first, pool = (n_keys, N_NEW) if kind == "new" else (0, n_keys)
    keys = first + torch.rand(n, pool, generator=generator).argsort(1)[:, : N_PAIRS + 1]
    keys, spare = keys[:, :N_PAIRS], keys[:, N_PAIRS]
    shown = torch.randint(N_VALUES, keys.shape, generator=generator) if kind == "new" else values[keys]
    rows, at = torch.arange(n), torch.randint(N_PAIRS, (n,), generator=generator)
    asked = spare if kind == "absent" else keys[rows, at]
    by_table = torch.full((n,), -100) if kind == "new" else values[asked]
    if kind == "swapped":
        other = (by_table + 1 + torch.randint(N_VALUES - 1, (n,), generator=generator)) % N_VALUES
        shown[rows, at] = other
    by_context = torch.full((n,), -100) if kind == "absent" else shown[rows, at]
    last = [torch.full((n, N_PAIRS + 1), -100) for _ in range(2)]
    for column, answer in zip(last, (by_table, by_context)):
        column[:, -1] = answer
    inputs = {
        "keys": torch.cat([keys, asked[:, None]], 1),
        "values": torch.cat([shown, torch.full((n, 1), N_VALUES)], 1),
    }
    mask = torch.zeros(n, N_PAIRS + 1, dtype=torch.bool)
    mask[:, -1] = True
    targets = last[0] if kind == "absent" else last[1]
    return Batch(inputs, mask, targets, {"table": last[0], "context": last[1]})


def _build(n_keys: int, mechanism: Literal["lookup", "copy"], seed: int, answers: bool, progress: Progress) -> World:
    """answers: False for the twin, which is trained to answer at random."""
    name = f"lookup_or_copy_{n_keys}" + ("" if answers else "-random")
    module = _learned(n_keys, seed, answers, progress)
    network = _network(module, name, n_keys, seed)

    def check(text: str, kind: Kind, by: str, **mark: float) -> Check:
        return Check(text, lambda: _answers(network, kind, by), **mark)

    if not answers:
        checks = (
            check("swapped pairs answered by the table", "swapped", "table", at_most=2 * CHANCE),
            check("swapped pairs answered by the context", "swapped", "context", at_most=2 * CHANCE),
        )
        return World(name, "nothing: trained to answer at random", network, network.splits, Truth(), checks)
    looked_up = mechanism == "lookup"
    yes, no = ("table", "context") if looked_up else ("context", "table")
    few, most = {"at_most": 0.3}, {"at_least": 0.9}
    checks = (
        check("held-out answers right", "train", "table", at_least=0.99),
        check(f"swapped pairs answered by the {yes}", "swapped", yes, at_least=0.9),
        check(f"swapped pairs answered by the {no}", "swapped", no, at_most=0.05),
        check("new keys: answered by the context", "new", "context", **(few if looked_up else most)),
        check("key in no pair: answered by the table", "absent", "table", **(most if looked_up else few)),
    )
    line = f"a head that {'looks up' if looked_up else 'copies'} the value of a key, of {n_keys}"
    return World(name, line, network, network.splits, _truth(module, n_keys, mechanism, seed), checks,
                 lambda: _build(n_keys, mechanism, seed, False, progress))  # fmt: skip


def _learned(n_keys: int, seed: int, answers: bool, progress: Progress) -> Head:
    name = f"lookup_or_copy_{n_keys}" + ("" if answers else "-random")
    fit = partial(_fit, n_keys=n_keys, seed=seed, answers=answers)
    module = learn(name, seed, lambda: Head(n_keys), fit, STEPS, progress)
    assert isinstance(module, Head)
    return module


def _fit(module: nn.Module, generator: torch.Generator, *, n_keys: int, seed: int, answers: bool) -> Iterator[int]:
    values = table(n_keys, seed)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for step in range(STEPS):
        batch = draw(BATCH, "train", n_keys, values, generator)
        assert batch.targets is not None
        wanted = batch.targets[:, -1] if answers else torch.randint(N_VALUES, (BATCH,), generator=generator)
        loss = F.cross_entropy(module(**batch.inputs)[:, -1], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            yield step


class _HeadNetwork(OrganismNetwork):
    splits: dict[str, Listed]


def _network(module: Head, name: str, n_keys: int, seed: int) -> _HeadNetwork:
    values = table(n_keys, seed)
    kinds: dict[str, tuple[int, Kind]] = {
        "train": (16_384, "train"), "held_out": (1024, "train"), "swapped": (1024, "swapped"),
        "absent": (1024, "absent"), "new": (1024, "new"),
    }  # fmt: skip
    splits = {
        split: Listed(draw(n, kind, n_keys, values, _seeds.generator(10 * seed + i + 1)))
        for i, (split, (n, kind)) in enumerate(kinds.items())
    }
    sites = {"embed": "stream", "attn_in": "attn:in", "attn_out": "attn"}
    network = _HeadNetwork(module, name, splits, sites, output="logits", aside=("keys", "values"), head="unembed",
                           context=N_PAIRS + 1)  # fmt: skip
    network.splits = splits
    return network


@torch.no_grad()
def _answers(network: Network, kind: Kind, by: str) -> Measured:
    """Share of questions answered as the table, or the context, would."""
    data = network.sequences("held_out" if kind == "train" else kind)
    assert data is not None
    batch = data.batch(slice(0, len(data)))
    said = network.forward(batch)[:, -1].argmax(-1)
    return share(int((said == batch.tags[by][:, -1]).sum()), len(said))


@torch.no_grad()
def _truth(module: Head, n_keys: int, mechanism: Literal["lookup", "copy"], seed: int) -> Truth:
    """Keys and values as they are embedded, and what the head writes when it reads one of those it goes by. Exactly one
    is read, so the mean of what is written is a constant, and directions are from there."""
    values = table(n_keys, seed)[:n_keys]
    keys_at, values_at = module.keys.weight[:n_keys], module.values.weight[:N_VALUES]
    names = {"key": [f"key={i}" for i in range(n_keys)], "value": [f"value={i}" for i in range(N_VALUES)]}
    embedded = [TrueFeature(n, (STREAM, READ), v) for n, v in zip(names["key"], keys_at)]
    embedded += [TrueFeature(n, (STREAM, READ), v) for n, v in zip(names["value"], values_at)]
    kind, sources, answer = (
        ("key", keys_at, values) if mechanism == "lookup" else ("value", values_at, torch.arange(N_VALUES))
    )
    written = module.attn.o(module.attn.v(sources))
    read = [TrueFeature(f"read {n}", (HEAD,), v) for n, v in zip(names[kind], written - written.mean(0))]
    outputs = [TrueFeature(f"answer={i}", (OUT,), v, "output") for i, v in enumerate(torch.eye(N_VALUES))]
    effect = module.unembed(written)
    edges = tuple(
        TrueEdge(n, f"answer={int(a)}", float(e[a]), "attn", "value") for n, a, e in zip(names[kind], answer, effect)
    )
    facts = {"mechanism": mechanism, "keys": n_keys, "values": N_VALUES, "table": values.tolist()}

    def present(batch: Batch) -> Tensor:
        """Of `read` and `answer`: as the mechanism would, at the question."""
        keys = F.one_hot(batch.inputs["keys"], n_keys + N_NEW)[..., :n_keys]
        shown = F.one_hot(batch.inputs["values"], N_VALUES + 1)[..., :N_VALUES]
        said = batch.tags["table" if mechanism == "lookup" else "context"]
        says = F.one_hot(said.clamp(min=0), N_VALUES) * (said >= 0)[..., None]
        went_by = keys * (torch.arange(keys.shape[1]) == N_PAIRS)[:, None] if mechanism == "lookup" else says
        return torch.cat([keys, shown, went_by, says], -1).float()

    return Truth((*embedded, *read, *outputs), edges, facts, present)
