"""Convolutional and staged classifiers of transformers: places are positions of maps, found by probing."""

import pytest
import torch
import transformers as T

from understudy.core.names import find_parts, find_sites
from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.networks import open_network
from understudy.networks._feature_maps import axes_of
from understudy.networks.hf_convnet import HFConvNet
from understudy.networks.hf_image_classifier import HFImageClassifier
from understudy.networks.image_opening import open_classifier

TINY = {"num_channels": 3, "num_labels": 5}
RES = {**TINY, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
NEXT = {**TINY, "hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 2}
MODELS = {
    # name: (class, config's class, its settings, blocks, MLPs that act at each place alone)
    "ResNet, basic": (T.ResNetForImageClassification, T.ResNetConfig, {**RES, "layer_type": "basic"}, 3, 0),
    "ResNet, bottlenecks": (T.ResNetForImageClassification, T.ResNetConfig, RES, 3, 0),
    "RegNet": (T.RegNetForImageClassification, T.RegNetConfig, {**RES, "groups_width": 4}, 3, 0),
    "ConvNeXt": (T.ConvNextForImageClassification, T.ConvNextConfig, NEXT, 3, 3),
    # Between its two matrices all places meet in a norm, so its MLP acts at no place alone.
    "ConvNeXt V2": (T.ConvNextV2ForImageClassification, T.ConvNextV2Config, NEXT, 3, 0),
    "PoolFormer": (T.PoolFormerForImageClassification, T.PoolFormerConfig,
                   {**TINY, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, 4, 4),
    "MobileNet V2": (T.MobileNetV2ForImageClassification, T.MobileNetV2Config, {**TINY, "depth_multiplier": 0.25},
                     16, 0),
    "Swin": (T.SwinForImageClassification, T.SwinConfig,
             {**TINY, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, 2, 2),
}  # fmt: skip


def small(name: str) -> HFConvNet:
    model, config, settings, *_ = MODELS[name]
    torch.manual_seed(0)
    said = config(**settings)
    said.image_size = 32
    found = open_classifier(model(said), name)
    assert isinstance(found, HFConvNet)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_blocks_convolutions_and_the_pooled_picture_have_names(name):
    network, (*_, n_blocks, n_mlps) = small(name), MODELS[name]
    rows = {row.name: row for row in network.named_sites()}
    assert [n for n in rows if n.startswith("resid.")] == [f"resid.{i}" for i in range(n_blocks)]
    assert [p.name for p in network.parts()] == [f"mlp.{i}" for i in range(n_mlps)]
    assert {"embed", "conv.0", "pooled"} <= set(rows)
    n_convs = sum(isinstance(m, torch.nn.Conv2d) for m in network.module.modules())
    in_mlps = sum(isinstance(network.module.get_submodule(m), torch.nn.Conv2d)
                  for p in network.parts() for m in p.replaces)  # fmt: skip
    assert sum(n.startswith("conv.") for n in rows) == n_convs - in_mlps
    order = [row.name for row in rows.values() if row.name.startswith("resid.")]
    assert list(find_sites(network, "resid")) == [rows[n].site for n in order]
    values = network.record(network.example(), [row.site for row in rows.values()])
    for row in rows.values():
        assert values[row.site].shape[0] == 3
        assert values[row.site].shape[-1] == row.layout.width
    # A block's map written back as it was read changes nothing: axes go there and back.
    site = rows["resid.0"].site
    edits = {site: lambda value, call: network.value(site, network.rows(site, value, 3).clone())}
    with torch.no_grad():
        clean = network(network.example()).logits
        with network.edited(edits):
            assert torch.equal(network(network.example()).logits, clean)


@pytest.mark.parametrize("name", ["ConvNeXt", "PoolFormer", "Swin"])
def test_neurons_of_an_mlp_write_what_it_writes(name):
    network = small(name)
    for part in find_parts(network, "mlp"):
        neurons = network.neurons(part)
        acts = network.record(network.example(), [neurons.site, part.write])
        torch.testing.assert_close(acts[neurons.site] @ neurons.W + neurons.bias, acts[part.write])


def test_a_site_that_keeps_no_places_is_refused_with_both_shapes():
    with pytest.raises(BadInput, match=r"windows|no axes") as told:
        small("Swin").layout(Site("swin.encoder.layers.0.blocks.0.attention.q_proj", "in"))
    assert "(64, 64)" in str(told.value)


def test_axes_are_told_apart_by_what_changes_with_the_pictures():
    assert axes_of((3, 8, 8, 8), (3, 8, 16, 16)) == ("batch", "d", "y", "x")
    assert axes_of((3, 8, 8, 8), (3, 16, 16, 8)) == ("batch", "y", "x", "d")
    assert axes_of((3, 64, 8), (3, 256, 8)) == ("batch", "pos", "d")
    assert axes_of((3, 8), (3, 8)) == ("batch", "d")
    assert axes_of((3, 8, 1, 1), (3, 8, 1, 1)) == ("batch", "d", "y", "x")
    assert axes_of((48, 16, 8), (192, 16, 8)) is None  # windows in the batch
    assert axes_of((3, 8, 7, 7), (3, 8, 7, 7)) is None  # pooled to a fixed grid: nothing tells them apart


def test_a_network_that_reads_one_size_only_and_keeps_no_stack_is_refused_by_name():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = T.ResNetConfig(num_labels=5)
            self.config.image_size = 8
            self.conv, self.classifier = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(144, 5)

        def forward(self, pixel_values):
            return {"logits": self.classifier(self.conv(pixel_values).flatten(1))}

    with pytest.raises(BadInput, match=r"Fixed.*8 x 8 and 16 x 16.*AnyModule"):
        open_classifier(Fixed(), "fixed")


def test_patches_through_one_stack_keep_their_own_adapter():
    said = T.ViTConfig(**TINY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                       image_size=8, patch_size=2)  # fmt: skip
    found = open_classifier(T.ViTForImageClassification(said), "vit", picture=PictureInput((8, 8)))
    assert isinstance(found, HFImageClassifier)
    assert found.picture.patches == (4, 4)


def test_the_demo_network_of_convolutions_reads_digits():
    network = open_network("demo:digits-cnn")
    held_out = network.sequences("held_out")
    batch = held_out.batch(slice(0, len(held_out)))
    with torch.no_grad():
        right = network.choice(network(batch)) == batch.targets
    assert right.double().mean() >= 0.95
    assert [p.name for p in network.parts()] == ["mlp.0", "mlp.1", "mlp.2"]
    assert {network.layout(p.write).axes for p in network.parts()} == {("batch", "y", "x", "d")}


def test_a_saved_network_of_convolutions_opens_by_its_folder(tmp_path):
    network = small("ResNet, basic")
    network.module.config.image_size = 32
    network.module.save_pretrained(tmp_path)
    opened = open_network(f"hf:{tmp_path}")
    assert isinstance(opened, HFConvNet)
    torch.testing.assert_close(opened(opened.example()).logits, network(opened.example()).logits)
