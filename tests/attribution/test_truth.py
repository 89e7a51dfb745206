"""Graphs of compiled programs against the programs: every planted edge is found, and nothing else."""

import pytest
import torch

from tests.attribution.random_dictionaries import card
from understudy.attribution import LocalPass, Target, build
from understudy.core.dictionary import Group
from understudy.core.records.graph import TargetCard
from understudy.core.replacement import Replacement
from understudy.core.world import World
from understudy.dictionaries import SAE
from understudy.organisms import programs
from understudy.sparsity import Threshold

NAMES = ("sort", "histogram", "fraction_previous", "parentheses", "induction")
INPUTS = 24


def true_groups(world: World) -> tuple[list[Group], dict[tuple[int, int], str]]:
    """At each site where features are first written, a dictionary whose latents are these features; their names by
    (dictionary, latent)."""
    groups, names = [], {}
    for site in dict.fromkeys(f.site for f in world.truth.features if f.role != "output"):
        here = [f for f in world.truth.features if f.site == site and f.role != "output"]
        W_dec = torch.stack([f.direction for f in here]).float()
        arrays = {"W_enc": torch.linalg.pinv(W_dec).T.contiguous(), "b_enc": torch.zeros(len(here)), "W_dec": W_dec}
        arrays["b_dec"] = torch.zeros(W_dec.shape[1])
        width = {site: W_dec.shape[1]}
        groups.append(
            Group([SAE(width, width, Threshold(torch.full((len(here),), 1e-3)), arrays).requires_grad_(False)])
        )
        names |= {(len(groups) - 1, i): f.name for i, f in enumerate(here)}
    return groups, names


def raw(local: LocalPass, k: int, place: int) -> Target:
    """An output's own score: less the mean of all it would have an edge from every feature."""
    return Target(TargetCard(name=str(k), weight=1.0), lambda seen: local.network.scores(seen.output)[0, place, k])


def found_edges(world: World) -> tuple[dict[tuple[str, str], float], set[str]]:
    """The largest |edge| between two features over inputs and places, and the features that were on."""
    groups, names = true_groups(world)
    outputs = [f for f in world.truth.features if f.role == "output"]
    edges: dict[tuple[str, str], float] = {}
    seen: set[str] = set()
    for i in range(INPUTS):
        batch = world.data["held_out"].batch([i])
        local = LocalPass(world.network, groups, batch)
        places = range(next(iter(batch.inputs.values())).shape[1])
        targets = [raw(local, k, p) for p in places for k in range(len(outputs))]
        called = [outputs[k].name for _ in places for k in range(len(outputs))]
        graph = build(local, targets, card(world.network, groups)).graph
        nodes = graph.nodes
        latent = [
            names[int(d), int(j)] if k == 3 else called[int(j)] if k == 4 else ""
            for k, d, j in zip(nodes.kind.tolist(), nodes.dictionary.tolist(), nodes.latent.tolist(), strict=True)
        ]
        seen |= set(latent) - {""}
        ends = zip(graph.rows.sources.tolist(), graph.rows.targets.tolist(), graph.rows.weights.tolist(), strict=True)
        for s, t, w in ends:
            if latent[s]:
                pair = (latent[s], latent[t])
                edges[pair] = max(edges.get(pair, 0.0), abs(w))
    return edges, seen


def auroc(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of (true, false) pairs in which the true one has the higher score; ties count half."""
    a, b = scores[truth][:, None], scores[~truth][None, :]
    return float(((a > b).double() + 0.5 * (a == b)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_planted_edges_and_no_others(name: str) -> None:
    world: World = getattr(programs, name)()
    edges, seen = found_edges(world)
    features = {f.name: f for f in world.truth.features}
    order = list(dict.fromkeys(f.site for f in world.truth.features))
    true = {(e.source, e.target) for e in world.truth.contract(set(features))}
    pairs = [
        (a, b)
        for a in seen
        for b in seen
        if features[a].role != "output" and order.index(features[a].site) < order.index(features[b].site)
    ]
    scores = torch.tensor([edges.get(p, 0.0) for p in pairs]).double()
    labels = torch.tensor([p in true for p in pairs])
    assert 0 < int(labels.sum()) < len(pairs)
    wrong = [(p, edges[p]) for p, yes in zip(pairs, labels.tolist(), strict=True) if not yes and edges.get(p, 0) > 1e-3]
    missed = [p for p, yes in zip(pairs, labels.tolist(), strict=True) if yes and edges.get(p, 0.0) < 1e-3]
    assert auroc(scores, labels) == 1.0, (wrong[:8], missed[:8])
    chance = auroc(scores[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))], labels)
    assert abs(chance - 0.5) < 0.2, "shuffled edges must give chance"


@pytest.mark.parametrize("name", NAMES)
def test_the_true_features_alone_run_the_program(name: str) -> None:
    world: World = getattr(programs, name)()
    groups, _ = true_groups(world)
    batch = world.data["held_out"].batch(slice(0, 256))
    scored = batch.targets != -100

    def right(kept: list[Group]) -> float:
        """Share of right answers, the mean over answers: a common one must not carry the figure."""
        chosen = world.network.choice(Replacement(world.network, kept).run(batch).output)[scored]
        wanted = batch.targets[scored]
        return sum(float((chosen[wanted == y] == y).double().mean()) for y in wanted.unique()) / len(wanted.unique())

    assert right(groups) == 1.0
    without = []
    for group in groups:
        member = group.members[0]
        ids = torch.arange(member.n_latents // 2)
        without.append(Group([member.restrict(ids)]))
    assert right(without) < 0.9, "half of the features must not do"
