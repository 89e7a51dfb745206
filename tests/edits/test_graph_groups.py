"""A graph run in the network's place: everything kept is the network, nothing kept its biases, and nothing foreign."""

import pytest
import torch
from torch import Tensor

from tests.contracts.customers import customer
from tests.edits.graphs import all_nodes, graph_of
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadInput, UnderstudyError, WrongShape
from understudy.core.replacement import MEASURED_ERRORS, Replacement
from understudy.edits import RunnableGraph, graph_groups, restricted
from understudy.edits.graph_groups import own_input


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def thresholded(name: str):
    """A customer's network with its groups as graphs need them."""
    c = customer(name)
    acts = c.network.record(c.network.example(), [s for g in c.groups for s in (*g.reads, *g.writes)])
    return c.network, [g.thresholded({s: v.flatten(0, -2) for s, v in acts.items()}) for g in c.groups]


@pytest.mark.parametrize("name", ["transcoder", "clt", "sae"])
def test_everything_kept_with_measured_errors_equals_the_network(name):
    network, groups = thresholded(name)
    batch = network.example()
    graph = graph_of(network, groups, all_nodes(groups), [0, 1, 2, 3, 4, 5])
    for at in ("features", "occurrences"):
        made = RunnableGraph.of(graph, network, groups, at)
        torch.testing.assert_close(made.run(batch, MEASURED_ERRORS).output, network(batch), rtol=0, atol=1e-5)
        whole = Replacement(network, groups).run(batch).output
        torch.testing.assert_close(made.run(batch).output, whole, rtol=0, atol=1e-5)
        assert (whole - network(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["transcoder", "clt", "sae"])
def test_nothing_kept_is_the_network_with_biases_in_place_of_what_is_replaced(name):
    network, groups = thresholded(name)
    batch = network.example()
    made = RunnableGraph.of(graph_of(network, groups, [], [0] * 6), network, groups)
    rest = {}
    for group in groups:
        zeros = {s: torch.zeros(1, 1, network.width(s)) for s in (*group.reads, *group.writes)}
        nothing = [m.encode(zeros).z.keep(torch.zeros(m.n_latents, dtype=torch.bool)) for m in group.members]
        rest |= group.write(nothing, zeros)

    def constant(site):
        return lambda value, call: rest[site].expand(value.shape)

    with network.edited({s: constant(s) for s in rest}):
        by_hand = network.forward(batch)
    torch.testing.assert_close(made.run(batch).output, by_hand, rtol=0, atol=1e-6)


def test_only_the_kept_latents_are_computed_and_they_keep_their_numbers():
    network, groups = thresholded("clt")
    kept = [(0, 3, -1), (0, 11, -1), (2, 7, -1)]
    parts = graph_groups(graph_of(network, groups, kept, [0] * 6), groups)
    assert [len(m.ids) for m in parts[0].members] == [2, 0, 1]
    assert [len(m.part.W_enc) for m in parts[0].members] == [2, 0, 1]
    batch = network.example()
    run = Replacement(network, parts).run(batch)
    mask = [torch.zeros(m.n_latents, dtype=torch.bool) for m in groups[0].members]
    mask[0][[3, 11]] = True
    mask[2][7] = True
    edits = {m: lambda z, k=k: z.keep(k) for m, k in zip(groups[0].members, mask, strict=True)}
    masked = Replacement(network, groups).run(batch, edits=edits)
    torch.testing.assert_close(run.output, masked.output, rtol=0, atol=1e-5)
    for part, whole in zip(parts[0].members, groups[0].members, strict=True):
        torch.testing.assert_close(run.latents[part][0].dense(), masked.latents[whole][0].dense(), rtol=0, atol=1e-5)


def test_occurrences_fire_only_where_they_are_nodes():
    network, groups = thresholded("transcoder")
    batch = network.example()[:1]
    found = Replacement(network, groups).record(batch)
    z = found.latents[groups[0].members[0], 0]
    place, latent = int(z.rows[0]), int(z.ids[0])
    graph = graph_of(network, groups, [(0, latent, place)], batch.inputs["tokens"][0].tolist())
    made = RunnableGraph.of(graph, network, groups, "occurrences")
    run = made.run(own_input(graph))
    own = run.latents[made.replacement.groups[0].members[0]][0]
    assert own.rows.tolist() == [place]
    assert own.ids.tolist() == [latent]
    assert all(len(run.latents[g.members[0]][0].ids) == 0 for g in made.replacement.groups[1:])
    longer = Batch({"tokens": torch.zeros(1, 9, dtype=torch.long)})
    with pytest.raises(WrongShape, match="6 places"):
        made.run(longer)


def test_a_graph_of_other_dictionaries_is_refused_and_says_which():
    network, groups = thresholded("transcoder")
    graph = graph_of(network, groups, all_nodes(groups), [0] * 6)
    groups[1].members[0].sparsity.theta[5] += 0.5  # pyright: ignore
    with pytest.raises(BadInput, match=r"writes blocks\.1\.mlp:out is another"):
        graph_groups(graph, groups)
    with pytest.raises(BadInput, match=r"reads blocks\.1\.mlp:in and writes blocks\.1\.mlp:out; none"):
        graph_groups(graph, [groups[0], groups[2]])
    other = graph_of(network, groups[:2], [], [0] * 6)
    with pytest.raises(BadInput, match=r"knows nothing of .*blocks\.2"):
        graph_groups(other, groups)


def test_a_graph_of_another_network_is_refused():
    network, groups = thresholded("transcoder")
    graph = graph_of(network, groups, all_nodes(groups), [0] * 6)
    weight: Tensor = network.module.get_submodule("head").weight  # pyright: ignore
    weight.mul_(1.5)
    with pytest.raises(BadInput, match="other weights"):
        RunnableGraph.of(graph, network, groups)


def test_latents_that_compete_are_refused():
    c = customer("transcoder")
    with pytest.raises(UnderstudyError, match="lets latents compete"):
        restricted(c.groups, {})


def test_a_policy_says_what_it_needs():
    network, groups = thresholded("transcoder")
    part: list[Group] = restricted(groups, {})
    batch = network.example()
    replacement = Replacement(network, part)
    with_errors = replacement.run(batch, MEASURED_ERRORS, replacement.record(batch)).output
    torch.testing.assert_close(with_errors, network(batch), rtol=0, atol=1e-5)
    assert (replacement.run(batch).output - network(batch)).abs().max() > 1e-2
