"""Compiled programs: right on every input, readable feature by feature, with edges that are the weights."""

import pytest
import torch

from understudy.core.site import Site
from understudy.organisms import ORGANISMS, make_organism, programs
from understudy.organisms._compile import compile_program
from understudy.organisms._network import hits
from understudy.organisms._rasp import Program

NAMES = [name for name, card in ORGANISMS.items() if card.home == "programs"]


@pytest.fixture(scope="module", params=NAMES)
def world(request):
    return make_organism(request.param)


def test_healthy_and_its_twin_has_nothing(world):
    assert [c for c in world.health() if not c.passed] == []
    assert [c for c in world.negative.health() if not c.passed] == []
    assert world.negative.truth.features == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_rotated_basis_changes_nothing_but_the_basis(name):
    world = getattr(programs, name)(0, rotation=5)
    assert [c for c in world.health() if not c.passed] == []


def test_held_out_answers_are_all_right(world):
    right, n = hits(world.network, world.data["held_out"])
    assert right == n > 100


def test_the_check_of_readings_bites(world):
    feature = next(f for f in world.truth.features if f.role == "feature" and "blocks" in str(f.site))
    features = tuple(f if f is not feature else vars_with(f, direction=2 * f.direction) for f in world.truth.features)
    wrong = type(world.truth)(features, world.truth.edges, world.truth.facts, world.truth.values)
    assert programs._reading_error(world.network, wrong, world.data["held_out"]).value > 0.05


def vars_with(feature, **changes):
    return type(feature)(**{**vars(feature), **changes})


def test_edges_are_the_weights_of_the_mlps(world):
    """Every weight between a feature and a neuron is an edge, and every such edge a weight."""
    module, truth = world.network.module, world.truth
    by_name = {f.name: f for f in truth.features}
    for i, block in enumerate(module.blocks):
        if block.mlp is None:
            continue
        neurons = [f.name for f in truth.at(Site(f"blocks.{i}.mlp.act"))]
        stream = [f for f in truth.features if f.role == "feature"]
        read = block.mlp.read.weight @ torch.stack([f.direction for f in stream]).T
        write = block.mlp.write.weight.T @ torch.stack([f.direction for f in stream]).T
        wanted = torch.zeros_like(read), torch.zeros_like(write)
        place = {f.name: j for j, f in enumerate(stream)}
        for edge in truth.edges:
            if edge.target in neurons:
                wanted[0][neurons.index(edge.target), place[edge.source]] = edge.weight
            if edge.source in neurons:
                wanted[1][neurons.index(edge.source), place[edge.target]] = edge.weight
        torch.testing.assert_close(read, wanted[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(write, wanted[1], atol=1e-4, rtol=1e-5)
    assert all(e.source in by_name and e.target in by_name for e in truth.edges)


def test_value_edges_are_what_attention_carries(world):
    """One unit of the source, fully attended to, writes the edge's weight of the target."""
    carried = [e for e in world.truth.edges if e.path == "value"]
    assert carried
    for edge in carried:
        source, target = world.truth.feature(edge.source), world.truth.feature(edge.target)
        attention = world.network.module.get_submodule(edge.via)
        out = attention.o.weight @ attention.v.weight @ source.direction
        assert float(out @ target.direction) == pytest.approx(edge.weight, abs=1e-4)


def test_the_same_seed_gives_the_same_bits():
    a, b = (programs.sort(3, rotation=1).network.module.state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_places_of_a_sequence_do_not_see_later_ones_where_the_program_is_causal():
    world = make_organism("induction")
    ids = world.data["held_out"].batch(slice(0, 4)).inputs["input_ids"]
    other = ids.clone()
    other[:, 9:] = other[:, 9:].flip(1)
    a, b = (world.network.module(x)[:, :9] for x in (ids, other))
    assert torch.equal(a, b)


def test_a_program_of_ones_own_is_compiled_and_agrees_with_its_meaning():
    """Is the word before this one the same?"""
    p = Program(tuple("ab"), 5)
    before = p.attend("before", p.positions, p.positions, lambda q, k: k == q - 1, p.tokens)
    p.output = p.map("same", lambda x, y: "yes" if x == y else "no", p.tokens, before)
    made = compile_program(p)
    tokens = torch.randint(1, 3, (64, 5), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.zeros(64, 1, dtype=torch.long), tokens], 1)
    said = made.module(ids)[:, 2:].argmax(-1)
    wanted = (tokens[:, 1:] != tokens[:, :-1]).long()
    labels = [p.output.labels.index("yes"), p.output.labels.index("no")]
    assert torch.equal(said, torch.tensor(labels)[wanted])


def test_neurons_of_the_parts_reproduce_them(world):
    for part in world.network.parts():
        neurons = world.network.neurons(part)
        batch = world.network.example()
        acts = world.network.record(batch, [neurons.site, part.write])
        torch.testing.assert_close(acts[neurons.site] @ neurons.W + neurons.bias, acts[part.write])
