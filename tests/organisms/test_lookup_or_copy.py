"""A head set by hand to look up, and one set to copy: the figures that tell them apart must be 1 and 0."""

import pytest
import torch

from understudy.organisms import lookup_or_copy as organism
from understudy.organisms._seeds import generator
from understudy.organisms.lookup_or_copy import (
    N_NEW,
    N_PAIRS,
    N_VALUES,
    D,
    Head,
    _answers,
    _network,
    _truth,
    draw,
    table,
)

N = 16
ROOM = D - N_VALUES
"""Dimensions for keys; one of its own for each value."""


def by_hand(mechanism):
    """Keys match keys; the head reads the value of what it finds, or the key."""
    head = Head(N)
    with torch.no_grad():
        keys = torch.randn(N + N_NEW, ROOM, generator=generator(1))
        head.keys.weight.zero_()[:, :ROOM] = keys / keys.norm(dim=1, keepdim=True)
        head.values.weight.zero_()[:N_VALUES, ROOM:] = torch.eye(N_VALUES)
        room = torch.diag((torch.arange(D) < ROOM).float())
        head.attn.q.weight.copy_(200 * room)
        head.attn.k.weight.copy_(room)
        head.attn.v.weight.copy_(torch.eye(D))
        head.attn.o.weight.copy_(torch.eye(D))
        head.unembed.weight.zero_()
        if mechanism == "copy":
            head.unembed.weight[:, ROOM:] = torch.eye(N_VALUES)
        else:
            wanted = torch.nn.functional.one_hot(table(N, 0)[:N], N_VALUES).float()
            head.unembed.weight[:, :ROOM] = torch.linalg.lstsq(head.keys.weight[:N, :ROOM], wanted).solution.T
    return head.eval()


@pytest.mark.parametrize("mechanism", ["lookup", "copy"])
def test_swapped_pairs_tell_a_lookup_from_a_copy(mechanism):
    network = _network(by_hand(mechanism), mechanism, N, 0)
    yes, no = ("table", "context") if mechanism == "lookup" else ("context", "table")
    assert _answers(network, "train", "table").value == 1
    assert _answers(network, "swapped", yes).value == 1
    assert _answers(network, "swapped", no).value == 0
    if mechanism == "copy":
        assert _answers(network, "new", "context").value == 1
    else:
        assert _answers(network, "absent", "table").value == 1


def test_the_splits_are_what_they_say():
    values = table(N, 0)
    for kind in ("train", "swapped", "absent", "new"):
        batch = draw(256, kind, N, values, generator(5))
        keys, shown = batch.inputs["keys"], batch.inputs["values"]
        assert (shown[:, -1] == N_VALUES).all()
        assert (shown[:, :-1] < N_VALUES).all()
        assert (keys >= N).all() == (kind == "new")
        matched = (keys[:, :-1] == keys[:, -1:]).sum(1)
        assert (matched == (0 if kind == "absent" else 1)).all()
        by_table, by_context = batch.tags["table"][:, -1], batch.tags["context"][:, -1]
        if kind == "swapped":
            assert (by_table != by_context).all()
            assert (values[keys[:, :-1]] != shown[:, :-1]).sum() == 256
        if kind == "train":
            assert torch.equal(by_table, by_context)
            assert torch.equal(values[keys[:, :-1]], shown[:, :-1])
        assert batch.mask.sum() == 256
        assert batch.mask[:, N_PAIRS].all()


@pytest.mark.parametrize("mechanism", ["lookup", "copy"])
def test_the_true_directions_are_what_the_head_writes(mechanism):
    """values x directions, with the mean that is always there, is the head's output at the question."""
    head = by_hand(mechanism)
    network, truth = _network(head, mechanism, N, 0), _truth(head, N, mechanism, 0)
    batch = network.sequences("train").batch(slice(0, 32))
    here = [i for i, f in enumerate(truth.features) if organism.HEAD in f.sites]
    values = truth.values(batch)[:, -1][:, here]
    assert (values.sum(1) == 1).all()
    room = (torch.arange(D) < ROOM) == (mechanism == "lookup")
    written = network.record(batch, [organism.HEAD])[organism.HEAD][:, -1] * room
    built = values @ truth.directions(organism.HEAD)
    scale = 1.0 if mechanism == "lookup" else 0.5  # the question attends to itself and to its pair alike
    torch.testing.assert_close(written - written.mean(0), scale * (built - built.mean(0)), atol=1e-4, rtol=1e-4)
    assert {e.target for e in truth.edges} <= set(truth.names)
    assert all(e.weight > 0.5 for e in truth.edges)
