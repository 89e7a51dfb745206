"""Two hops: whose is b, by r, of whom a is by q. One network goes by way of b; its twin knows the answers by heart.

Entities and relations are made up; each relation is a permutation. Both networks learn every single fact and four
fifths of the compositions until they are right on all of them. Trained on answers alone, a network memorises
compositions: held-out ones fail though it knows each hop (Wang et al. 2024, arXiv:2405.15071; on small machines the
long training that ends this there is not reached). That is the twin, and a method that finds a bridge in it is wrong.
The organism was also told, at the first relation's place after the first block, which entity the bridge is, and it
composes facts that it never saw together.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.core.world import Check, TrueFeature, Truth, World, share
from understudy.organisms import _seeds
from understudy.organisms._network import Listed, OrganismNetwork, hits
from understudy.organisms._training import learn
from understudy.organisms._transformer import Transformer, parts, sites, transformer

N_ENTITIES, N_RELATIONS = 30, 6
NOTHING = N_ENTITIES + N_RELATIONS
"""The word at place 0 of a single fact."""
SEEN = 0.8
"""Share of compositions that are trained on."""
STEPS, HEART_STEPS, BATCH = 1000, 300, 256
BRIDGE = Site("blocks.0")
PLACE = 1
"""Where the first relation stands."""


def two_hop(seed: int = 0, progress: Progress = SILENT) -> World:
    """Splits: `train`, `held_out` (compositions never seen), `hops` (single facts, all of them trained on)."""
    return _build(seed, True, progress)


def facts(seed: int) -> Tensor:
    """[relation, entity] -> entity."""
    generator = _seeds.generator(seed)
    return torch.stack([torch.randperm(N_ENTITIES, generator=generator) for _ in range(N_RELATIONS)])


def _build(seed: int, composes: bool, progress: Progress) -> World:
    name = "two_hop" if composes else "two_hop-memorised"
    fit = partial(_fit, seed=seed, composes=composes)
    module = learn(name, seed, _module, fit, STEPS if composes else HEART_STEPS, progress)
    assert isinstance(module, Transformer)
    data = _data(seed)
    network = OrganismNetwork(
        module, name, data, sites(module), output="logits", parts=parts(module),
        aside=("embed", "positions", "unembed"), context=3,
    )  # fmt: skip
    table = facts(seed)

    def right(split: str) -> Measured:
        return share(*hits(network, data[split]))

    def moved(same: bool) -> Measured:
        return _moved(network, table, same)

    known = (
        Check("trained compositions right", lambda: right("train"), at_least=0.99),
        Check("single hops right", lambda: right("hops"), at_least=0.99),
    )
    if not composes:
        checks = (
            *known,
            Check("held-out compositions right", lambda: right("held_out"), at_most=0.2),
            Check("answers that follow another bridge put in", lambda: moved(False), at_most=0.2),
        )
        planted = "nothing: compositions known by heart, no bridge"
        return World(name, planted, network, data, Truth(), checks)
    checks = (
        *known,
        Check("held-out compositions right", lambda: right("held_out"), at_least=0.9),
        Check("answers that follow another bridge put in", lambda: moved(False), at_least=0.9),
        Check("answers that stay with the same bridge put in", lambda: moved(True), at_least=0.9),
    )
    return World(name, "the second hop is looked up from the bridge, at the first relation's place", network, data,
                 _truth(network, table), checks, lambda: _build(seed, False, progress))  # fmt: skip


def _module() -> Transformer:
    return transformer(NOTHING + 1, 3, N_ENTITIES, 64, 2, 4, 256, causal=True, norm=True)


def _data(seed: int) -> dict[str, Listed]:
    table = facts(seed)
    every = torch.cartesian_prod(*(torch.arange(n) for n in (N_ENTITIES, N_RELATIONS, N_RELATIONS)))
    order = torch.randperm(len(every), generator=_seeds.generator(seed + 1))
    cut = int(SEEN * len(every))
    single = torch.cartesian_prod(torch.arange(N_ENTITIES), torch.arange(N_RELATIONS))
    composed = [_composed(every[rows], table) for rows in (order[:cut], order[cut:])]
    hop = torch.stack([torch.full((len(single),), NOTHING), single[:, 0], N_ENTITIES + single[:, 1]], 1)
    hops = _batch(hop, table[single[:, 1], single[:, 0]], single[:, 0])
    return {"train": Listed(composed[0]), "held_out": Listed(composed[1]), "hops": Listed(hops)}


def _composed(rows: Tensor, table: Tensor) -> Batch:
    """rows [n, 3]: entity, first relation, second relation."""
    bridge = table[rows[:, 1], rows[:, 0]]
    ids = torch.stack([rows[:, 0], N_ENTITIES + rows[:, 1], N_ENTITIES + rows[:, 2]], 1)
    return _batch(ids, table[rows[:, 2], bridge], bridge)


def _batch(ids: Tensor, answer: Tensor, bridge: Tensor) -> Batch:
    """The answer is at the last place. Tag `bridge`, at place 1: whose fact the second hop is."""
    targets, at = torch.full_like(ids, -100), torch.full_like(ids, -100)
    targets[:, 2], at[:, PLACE] = answer, bridge
    return Batch({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool), targets, {"bridge": at})


def _fit(module: nn.Module, generator: torch.Generator, *, seed: int, composes: bool) -> Iterator[int]:
    """The organism's loss has a second term: the bridge, read from the first block by the entities' own embeddings. The
    weight decay is large, or held-out compositions come late; the twin has little."""
    assert isinstance(module, Transformer)
    data, steps = _data(seed), STEPS if composes else HEART_STEPS
    parts_of = [data[s].batch(slice(0, len(data[s]))) for s in ("train", "hops")]
    ids = torch.cat([b.inputs["input_ids"] for b in parts_of])
    answer = torch.cat([b.targets[:, 2] for b in parts_of if b.targets is not None])
    bridge = torch.cat([b.tags["bridge"][:, PLACE] for b in parts_of])
    middle: list[Tensor] = []
    hook = module.blocks[0].register_forward_hook(lambda m, args, out: middle.append(out[:, PLACE]))
    rate = 3e-3
    optimizer = torch.optim.AdamW(module.parameters(), rate, (0.9, 0.98), weight_decay=1.0 if composes else 0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 5 * (1 - step / steps))
        i = torch.randint(len(ids), (BATCH,), generator=generator)
        loss = F.cross_entropy(module(ids[i])[:, 2], answer[i])
        if composes:
            loss = loss + F.cross_entropy(middle[-1] @ module.embed.weight[:N_ENTITIES].T, bridge[i])
        middle.clear()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            yield step
    hook.remove()


def _held_out(network: Network) -> Batch:
    data = network.sequences("held_out")
    assert data is not None
    return data.batch(slice(0, len(data)))


@torch.no_grad()
def _moved(network: Network, table: Tensor, same: bool) -> Measured:
    """Of trained compositions, with what the first block says at the first relation's place taken from another entity
    and relation: share answered as the bridge put in has it. same: it is the same bridge, so the answer must stay;
    otherwise another, so the answer must become that of the other. What stays at the last place is its own."""
    data = network.sequences("train")
    assert data is not None
    batch = data.batch(slice(0, len(data)))
    ids, bridge = batch.inputs["input_ids"], batch.tags["bridge"][:, PLACE]
    generator = _seeds.generator(3)
    n = len(ids)
    wanted = bridge if same else (bridge + 1 + torch.randint(N_ENTITIES - 1, (n,), generator=generator)) % N_ENTITIES
    # Another relation than the question's own, by a shift, and the one entity that has this bridge there.
    relation = (ids[:, 1] - N_ENTITIES + 1 + torch.randint(N_RELATIONS - 1, (n,), generator=generator)) % N_RELATIONS
    entity = table.argsort(1)[relation, wanted]
    other = torch.stack([entity, N_ENTITIES + relation, ids[:, 2]], 1)
    given = network.record(Batch({"input_ids": other}), [BRIDGE])[BRIDGE]

    def put(value: Tensor, call: int) -> Tensor:
        value = value.clone()
        value[:, PLACE] = given[:, PLACE]
        return value

    with network.edited({BRIDGE: put}):
        said = network.forward(batch)[:, 2].argmax(-1)
    return share(int((said == table[ids[:, 2] - N_ENTITIES, wanted]).sum()), n)


@torch.no_grad()
def _truth(network: Network, table: Tensor) -> Truth:
    """A bridge's direction is its mean over trained compositions less the mean over bridges: measured, and shown to be
    causal by the checks."""
    data = network.sequences("train")
    assert data is not None
    batch = data.batch(slice(0, len(data)))
    rows, bridge = network.record(batch, [BRIDGE])[BRIDGE][:, PLACE], batch.tags["bridge"][:, PLACE]
    means = torch.stack([rows[bridge == i].mean(0) for i in range(N_ENTITIES)])
    features = [TrueFeature(f"bridge={i}", (BRIDGE,), v) for i, v in enumerate(means - means.mean(0))]
    known = {
        "facts": table.tolist(), "entities": N_ENTITIES, "place": PLACE,
        "direction": "mean at the place, less the mean over bridges; measured, not planted",
    }  # fmt: skip

    def values(batch: Batch) -> Tensor:
        at = batch.tags["bridge"]
        return (F.one_hot(at.clamp(min=0), N_ENTITIES) * (at >= 0)[..., None]).float()

    return Truth(tuple(features), (), known, values)
