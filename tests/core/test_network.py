"""Network: layouts, recording, costs, with a small module of one's own."""

import pytest
import torch
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Layout, Network
from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName, WrongShape
from understudy.core.site import Site
from understudy.networks import AnyModule

SEQ = ("batch", "pos", "d")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.flat, self.act = nn.Embedding(7, 8), nn.Linear(8, 16), nn.ReLU(inplace=True)
        self.back, self.head = nn.Linear(16, 8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        hidden = self.act(self.flat(x.flatten(0, 1)))
        return self.head(x + self.back(hidden).view_as(x))


@pytest.fixture
def network() -> AnyModule:
    torch.manual_seed(0)
    axes = {"flat:*": ("row", "d"), "act": ("row", "d"), "*": SEQ}
    return AnyModule(Net(), Batch({"ids": torch.arange(10).reshape(2, 5) % 7}), axes, aside=("embed", "head"))


@pytest.mark.parametrize("axes", [SEQ, ("time", "batch", "d"), ("batch", "d", "y", "x"), ("batch", "head", "pos", "d")])
def test_rows_put_batch_first_and_features_last_and_back(axes: tuple[str, ...]):
    value = torch.randn([2, 3, 4, 5][: len(axes)])
    rows = Layout(axes, 1).rows(value)
    assert rows.shape[0] == value.shape[axes.index("batch")]
    assert rows.shape[-1] == value.shape[axes.index("d")]
    assert torch.equal(Layout(axes, 1).value(rows), value)
    with pytest.raises(WrongShape, match="expected axes"):
        Layout(axes, 1).rows(value[..., None])


def test_flattened_places_come_back_as_places(network: AnyModule):
    values = network.record(network.example(), [Site("flat", "in"), Site("embed")])
    assert torch.equal(values[Site("flat", "in")], values[Site("embed")])
    assert network.layout(Site("flat", "in")).axes == ("row", "d")


def test_in_place_operations_are_found_and_remembered(network: AnyModule):
    values = network.record(network.example(), [Site("flat")], stop=False)
    assert values[Site("flat")].min() < 0
    assert Site("flat") in network._clone


def test_inputs_can_be_recorded(network: AnyModule):
    ids = Site.parse("inputs:ids")
    assert network.record(network.example(), [ids])[ids] is network.example().inputs["ids"]
    with pytest.raises(UnknownName, match="Did you mean ids"):
        network.record(network.example(), [Site.parse("inputs:idz")])


def test_a_site_without_axes_says_what_to_add():
    bare = AnyModule(nn.Linear(3, 4), Batch({"input": torch.zeros(2, 3)}), {"other": SEQ})
    with pytest.raises(WrongShape, match=r"no axes are given for :out"):
        bare.layout(Site(""))


def test_shares_of_parameters_leave_embedding_and_head_out(network: AnyModule):
    flat, back = 8 * 16 + 16, 16 * 8 + 8
    assert network.share_of_parameters(["flat"]) == flat / (flat + back)
    assert network.share_of_parameters(["flat", "flat", "back"]) == 1
    assert network.share_of_parameters(["head"]) == 0
    with pytest.raises(UnknownName, match="Did you mean flat"):
        network.share_of_parameters(["flatt"])


def test_shares_of_compute_count_products_by_hand(network: AnyModule):
    flat, back, head = 8 * 16, 16 * 8, 8 * 7
    assert network.share_of_compute(["flat"]) == pytest.approx(flat / (flat + back + head))
    assert network.share_of_compute(["", "flat"]) == 1


def test_attention_experts_and_recurrence_are_counted():
    for module, inputs in (
        (nn.LSTM(4, 5), {"input": torch.zeros(3, 2, 4)}),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), {"src": torch.zeros(2, 3, 8)}),
    ):
        assert AnyModule(module, Batch(inputs), SEQ).share_of_compute([""]) == 1
    nothing = AnyModule(nn.ReLU(), Batch({"input": torch.zeros(2, 3)}), ("batch", "d"))
    with pytest.raises(BadInput, match="no operation"):
        nothing.share_of_compute([""])


def test_an_adapter_that_lacks_a_method_says_which_to_write():
    bare = Network(nn.Linear(2, 2), "mine")
    with pytest.raises(UnderstudyError, match=r"Network has no example: write the method example\(self\) -> Batch"):
        bare.example()
    with pytest.raises(UnderstudyError, match=r"has no divergence: .*AnyModule.*docs/guide/own-network.md"):
        bare.divergence(0, 0, Batch({}))


def test_names_of_one_tensor_are_found(network: AnyModule):
    embed, flat, back, act = Site("embed"), Site("flat", "in"), Site("back"), Site("act")
    assert network.same_tensor([embed, flat, back]) == [(embed, flat)], "a view of the same places"
    assert network.same_tensor([embed, back]) == []
    assert network.same_tensor([act, Site("back", "in")]) == [(act, Site("back", "in"))]
