"""Expressions: exact with everything kept, known answers on compiled programs under edits, and a control at chance."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.attribution.random_dictionaries import card
from tests.graphs import layered
from understudy.attribution import LocalPass, build
from understudy.attribution.targets import output
from understudy.core.graph import Graph
from understudy.core.latents import Latents
from understudy.core.records.errors import WrongShape
from understudy.core.replacement import Replacement
from understudy.core.world import World
from understudy.edits import Expression
from understudy.organisms import programs
from understudy.workflows._exam.graphs import true_dictionaries


def program_graph(world: World, i: int) -> tuple[Graph, Callable[[], torch.Tensor]]:
    """The graph of one answer, and what removing each of its latents does to it in the network."""
    groups, network = true_dictionaries(world), world.network
    batch = world.data["held_out"].batch([i])
    place = int((batch.targets[0] != -100).nonzero()[-1])
    answer = int(batch.targets[0, place])
    local = LocalPass(network, groups, batch)
    graph = build(local, [output(local, answer, place)], card(network, groups)).graph
    members = [m for g in groups for m in g.members]
    table = graph.nodes

    @torch.no_grad()
    def live() -> torch.Tensor:
        replacement, out = Replacement(network, groups), []
        own = score(network.forward(batch))
        for node in latents(graph).tolist():
            row, latent = (torch.tensor([int(c[node])]) for c in (table.place, table.latent))
            member = members[int(table.dictionary[node])]
            remove = partial(removed, row=row, latent=latent)
            run = replacement.intervene(batch, {member: remove})
            out.append(score(run.output) - own)
        return torch.tensor(out, dtype=torch.float64)

    def score(out: torch.Tensor) -> float:
        return float(out[0, place, answer] - out[0, place].mean())

    return graph, live


def removed(z: Latents, row: torch.Tensor, latent: torch.Tensor) -> Latents:
    return z.put(row, latent, torch.zeros(1))


def latents(graph: Graph) -> torch.Tensor:
    return graph.nodes.where("latent").nonzero().squeeze(-1)


def effects(graph: Graph, nodes: torch.Tensor, thresholds: bool = True) -> torch.Tensor:
    """What the expression says of the targets when each node is removed, [nodes, targets]."""
    made = Expression(graph, thresholds)
    return (made.values(made.without(nodes)) - made.values())[:, graph.nodes.where("target")]


@pytest.mark.parametrize("name", ["sort", "histogram", "fraction_previous", "parentheses", "induction"])
def test_everything_kept_and_nothing_edited_is_the_program(name):
    world = getattr(programs, name)()
    graph, _ = program_graph(world, 0)
    computed = graph.nodes.computed
    made = Expression(graph)
    for measured in (True, False):  # true features miss nothing, so alone is as good
        found = made.values(measured=measured)[0]
        torch.testing.assert_close(found[computed].float(), graph.nodes.value[computed], atol=1e-4, rtol=1e-4)


def test_thresholds_follow_a_programs_own_nonlinearity_under_edits():
    """Where an edit turns a neuron off, the expression is right and a sum over paths is not."""
    for name in ("histogram", "fraction_previous"):
        world = getattr(programs, name)()
        graph, removals = program_graph(world, 1)
        nodes, live = latents(graph), removals()
        with_thresholds, linear = (effects(graph, nodes, on).squeeze(-1) for on in (True, False))

        def r2(predicted, live=live):
            return float(1 - (predicted - live).square().sum() / live.square().sum())

        shuffled = with_thresholds[torch.randperm(len(nodes), generator=torch.Generator().manual_seed(0))]
        assert r2(with_thresholds) > r2(linear) + 0.1, name
        assert r2(with_thresholds) > 0.3 > 0.05 > r2(shuffled), name
        exact = (with_thresholds - live).abs() < 1e-3
        assert exact.double().mean() > 0.8, name


def test_a_removed_error_and_a_pruned_node_are_gone_unless_they_are_measured():
    graph, a = layered(seed=3)
    made = Expression(graph)
    computed = graph.nodes.computed
    torch.testing.assert_close(made.values(measured=True)[0][computed], a.sum(1)[computed], atol=1e-5, rtol=1e-5)
    part = graph.keep(~graph.nodes.where("error"))
    torch.testing.assert_close(Expression(part).values()[0], made.values()[0][~graph.nodes.where("error")])
    assert (made.values()[0] - made.clean)[computed].abs().max() > 0.1, "alone, errors are missed"
    kept_back = Expression(part).values(measured=True)[0][part.nodes.computed]
    torch.testing.assert_close(kept_back.float(), part.nodes.value[part.nodes.computed], atol=1e-5, rtol=1e-5)


def test_linear_effects_are_the_sum_over_paths():
    graph, a = layered(seed=1, errors=False)
    is_latent = graph.nodes.where("latent")
    direct = torch.where(is_latent[None, :], a / torch.where(is_latent, a.sum(1), 1.0)[None, :], 0.0)
    total = torch.linalg.inv(torch.eye(len(a), dtype=torch.float64) - direct)
    node = latents(graph)[:3]
    found = effects(graph, node, thresholds=False)
    expected = -(total[graph.nodes.where("target")][:, node] * a.sum(1)[node]).T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_edit_sets_what_is_passed_on_and_zero_edits_change_nothing():
    graph, _ = layered(seed=2)
    made = Expression(graph)
    same = torch.full((1, len(graph)), torch.nan)
    assert torch.equal(made.values(same), made.values())
    node = graph.nodes.where("latent").nonzero()[0]
    once = torch.full((2, len(graph)), torch.nan)
    once[0, node], once[1, node] = 1.0, 0.0
    kept, removed = made.values(once, measured=True)
    torch.testing.assert_close(kept, made.values(measured=True)[0])
    assert (removed - kept).abs().max() > 1e-3
    with pytest.raises(WrongShape, match="nodes"):
        made.values(torch.zeros(1, 3))
