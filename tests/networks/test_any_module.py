"""AnyModule: a network of one's own in a few lines."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_parts, find_sites
from understudy.core.network import Part
from understudy.core.records.errors import BadInput, UnknownName, WrongShape
from understudy.core.records.metric import NotMeasured
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.networks import AnyModule
from understudy.sparsity import Identity


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers), head=nn.Linear(6, 2)))


EXAMPLE = Batch({"input": torch.randn(4, 6, generator=torch.Generator().manual_seed(0))})


def test_one_line_is_enough():
    network = AnyModule(mlp(), EXAMPLE, ("batch", "d"))
    assert [row.name for row in network.named_sites()] == ["block.0", "block.1", "block.2"]
    (site,) = find_sites(network, "block.1")
    assert network.record(EXAMPLE, [site])[site].shape == (4, 6)
    out = network(EXAMPLE)
    assert isinstance(network.loss(out, EXAMPLE), NotMeasured)
    assert isinstance(network.choice(out), NotMeasured)
    assert network.divergence_unit == "mean squared difference"
    torch.testing.assert_close(network.divergence(out, out + 2, EXAMPLE), torch.full((4,), 4.0))


def test_a_dictionary_runs_in_a_layers_place():
    network = AnyModule(mlp(), EXAMPLE, ("batch", "d"), parts=[Part("mlp.1", Site("layers.1", "in"), Site("layers.1"))])
    (part,) = find_parts(network, "mlp.1")
    arrays = {"W_enc": torch.eye(6), "b_enc": torch.zeros(6), "W_dec": torch.eye(6)}
    skip = LinearDictionary({part.read: 6}, {part.write: 6}, Identity(), arrays)
    module = mlp()
    expected = module.head(module.layers[2](module.layers[0](EXAMPLE.inputs["input"])))
    torch.testing.assert_close(Replacement(network, [Group([skip])]).run(EXAMPLE).output, expected)
    with pytest.raises(UnknownName, match="is not a known part"):
        find_parts(network, "attn")


def test_a_loss_and_a_divergence_of_ones_own():
    network = AnyModule(
        mlp(), EXAMPLE, ("batch", "d"), name="policy",
        loss=lambda out, batch: nn.functional.cross_entropy(out, batch.targets, reduction="none"),
        divergence=lambda a, b, batch: (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1),
        choice=lambda out: out.argmax(-1),
        sites={"hidden": "layers.1:out"},
    )  # fmt: skip
    batch = Batch(EXAMPLE.inputs, targets=torch.tensor([0, 1, 0, 1]))
    out = network(batch)
    assert network.loss(out, batch).shape == network.choice(out).shape == (4,)
    assert network.divergence_unit == "nats"
    assert [row.name for row in network.named_sites()] == ["hidden"]


def test_divergence_has_the_masks_places():
    sequence = AnyModule(mlp(), Batch({"input": torch.randn(2, 5, 6)}), ("batch", "pos", "d"))
    batch = Batch(sequence.example().inputs, mask=torch.ones(2, 5, dtype=torch.bool))
    out = sequence(batch)
    assert sequence.divergence(out, out, batch).shape == (2, 5)
    assert sequence.divergence(out, out, sequence.example()).shape == (2,)


def test_axes_that_do_not_fit_say_what_to_give():
    with pytest.raises(BadInput, match="exactly one 'd'"):
        AnyModule(mlp(), EXAMPLE, ("batch", "channel"))
    network = AnyModule(mlp(), EXAMPLE, {"layers.1": ("batch", "pos", "d"), "*": ("batch", "d")})
    with pytest.raises(WrongShape, match=r"layers.1:out holds a tensor \(4, 6\), but axes 'layers.1' names 3"):
        network.layout(Site("layers.1"))
    assert network.width(Site("layers.0")) == 6


def test_ones_own_way_to_run_it():
    network = AnyModule(
        mlp(), Batch({"x": torch.ones(4, 6)}), ("batch", "d"), forward=lambda module, inputs: module(inputs["x"] * 2)
    )
    torch.testing.assert_close(network(network.example()), mlp()(torch.full((4, 6), 2.0)))
