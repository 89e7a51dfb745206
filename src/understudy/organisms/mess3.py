"""Mess3: a hidden Markov process whose exact beliefs are known, and a transformer trained to predict it.

A network that predicts well must track the belief over three hidden states. Beliefs can be read linearly from many
networks, untrained ones too, so recovery is scored above baselines. Process and claim: Shai et al. 2024
(arXiv:2405.15943), with their x = 0.05, a = 0.85.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, Truth, World, mean
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork
from understudy.organisms._training import learn
from understudy.organisms._transformer import Transformer, parts, sites, transformer

X, A = 0.05, 0.85
LENGTH, STEPS, BATCH = 10, 1500, 256
LAST = Site("blocks.1")


def process() -> Tensor:
    """[symbol, from, to]: chance of a symbol together with the next hidden state."""
    b, y = (1 - A) / 2, 1 - 2 * X
    emit = torch.full((3, 3), b, dtype=torch.float64) + torch.eye(3) * (A - b)  # [state, symbol]
    move = torch.full((3, 3), X, dtype=torch.float64) + torch.eye(3) * (y - X)
    return torch.stack([move * emit[:, symbol] for symbol in range(3)])


def beliefs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Belief over the hidden state after each symbol, and the exact chances of the next symbol, [batch, pos, 3]."""
    steps = process()
    belief = torch.full((len(ids), 3), 1 / 3, dtype=torch.float64)
    out = []
    for symbol in ids.T:
        belief = torch.einsum("bi,bij->bj", belief, steps[symbol])
        belief = belief / belief.sum(1, keepdim=True)
        out.append(belief)
    states = torch.stack(out, 1)
    return states, torch.einsum("bpi,sij->bps", states, steps)


def mess3(seed: int = 0, progress: Progress = SILENT) -> World:
    """The feature is a plane, not a list of directions: recovery is scored by `belief_gain`."""
    module = learn("mess3", seed, _module, _fit, STEPS, progress)
    assert isinstance(module, Transformer)
    data = {"train": _data(8192, 2 * seed), "held_out": _data(1024, 2 * seed + 1)}
    network = _network("mess3", module, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seeds.salted(seed + 1))
        untrained = _network("mess3-untrained", _module().eval(), data)
    facts = {"x": X, "a": A, "states": 3, "process": process().tolist()}
    truth = Truth(facts=facts, values=lambda batch: beliefs(batch.inputs["input_ids"])[0].float())
    checks = (
        Check("loss above the exact predictor's", lambda: _excess(network), at_most=0.005),
        Check("belief read from the last site (R2)", lambda: exact(_r2(network, LAST), "R2", 1024), at_least=0.97),
        Check("belief gained over last words and counts", lambda: belief_gain(network, LAST), at_least=0.5),
    )

    def twin() -> World:
        mark = Check("belief gained over last words and counts", lambda: belief_gain(untrained, LAST), at_most=0.25)
        return World(untrained.name, "nothing: random weights", untrained, data, Truth(), (mark,))

    return World("mess3", "the belief over 3 hidden states is a plane of the last site", network, data, truth, checks,
                 twin)  # fmt: skip


def _module() -> Transformer:
    return transformer(3, LENGTH, 3, 32, 2, 2, 128, causal=True, norm=True)


def _draw(n: int, generator: torch.Generator) -> Tensor:
    """[n, LENGTH + 1] symbols."""
    flat = process().permute(1, 0, 2).reshape(3, 9).float()  # from -> (symbol, to)
    state, out = torch.randint(3, (n,), generator=generator), []
    for _ in range(LENGTH + 1):
        both = torch.multinomial(flat[state], 1, generator=generator)[:, 0]
        state = both % 3
        out.append(both // 3)
    return torch.stack(out, 1)


def _data(n: int, seed: int) -> Listed:
    ids = _draw(n, _seeds.generator(seed))
    return Listed(Batch({"input_ids": ids[:, :-1]}, torch.ones(n, LENGTH, dtype=torch.bool), ids[:, 1:]))


def _network(name: str, module: Transformer, data: dict[str, Listed]) -> OrganismNetwork:
    return OrganismNetwork(
        module, name, data, sites(module), output="logits", parts=parts(module),
        aside=("embed", "positions", "unembed"), context=LENGTH,
    )  # fmt: skip


def _fit(module: nn.Module, generator: torch.Generator) -> Iterator[int]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        ids = _draw(BATCH, generator)
        loss = F.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            yield step


def _batch(network: Network, split: str) -> Batch:
    data = network.sequences(split)
    assert data is not None
    return data.batch(slice(0, min(len(data), 2048)))


@torch.no_grad()
def _excess(network: Network) -> Measured:
    """Nats a symbol more than the exact predictor, paired over sequences."""
    batch = _batch(network, "held_out")
    assert batch.targets is not None
    loss = network.loss(network.forward(batch), batch)
    _, chances = beliefs(batch.inputs["input_ids"])
    best = -chances.gather(-1, batch.targets[..., None])[..., 0].log()
    return mean((loss.double() - best).mean(1), "nats")  # pyright: ignore[reportAttributeAccessIssue]


def _r2(network: Network, site: Site) -> float:
    sides = [(network.record(_batch(network, s), [site])[site], _batch(network, s)) for s in ("train", "held_out")]
    return _probe(*((x, beliefs(b.inputs["input_ids"])[0]) for x, b in sides))


def belief_gain(network: Network, site: Site) -> Measured:
    """(R2 - baseline) / (1 - baseline): belief read affinely from a site, above what the last two symbols and the
    counts so far give. 0: no better than they are; 1: exact. R2 over held-out places, probes fitted on `train`."""
    base = _probe(*((_simple(b.inputs["input_ids"]), beliefs(b.inputs["input_ids"])[0])
                    for b in (_batch(network, s) for s in ("train", "held_out"))))  # fmt: skip
    return exact((_r2(network, site) - base) / (1 - base), "fraction", 1024)


def _simple(ids: Tensor) -> Tensor:
    """Last two symbols jointly, counts and position: what needs no belief."""
    one = F.one_hot(ids, 3).double()
    before = torch.cat([torch.zeros_like(one[:, :1]), one[:, :-1]], 1)
    pair = (one[..., None] * before[..., None, :]).flatten(-2)
    place = torch.eye(ids.shape[1], dtype=torch.float64).expand(len(ids), -1, -1)
    return torch.cat([one, before, pair, one.cumsum(1), place], -1)


def _probe(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    x, y = (t.flatten(0, -2).double() for t in train)
    u, v = (t.flatten(0, -2).double() for t in held_out)
    x, u = (torch.cat([t, torch.ones(len(t), 1, dtype=t.dtype)], 1) for t in (x, u))
    gram = x.T @ x + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype)
    error = (u @ torch.linalg.solve(gram, x.T @ y) - v).square().sum()
    return float(1 - error / (v - v.mean(0)).square().sum())
