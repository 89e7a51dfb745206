"""Image classifiers of transformers: places are patches, behaviour has one place an image."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from understudy.core.batch import Batch
from understudy.core.records.errors import BadInput, UnknownName
from understudy.networks import open_network
from understudy.networks.digits import Digits
from understudy.networks.hf_image_classifier import HFImageClassifier

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 2, "num_channels": 1, "num_labels": 10,
}  # fmt: skip


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return HFImageClassifier(ViTForImageClassification(ViTConfig(**SMALL)), "vit", Digits())


@pytest.mark.parametrize(
    ("config", "model"),
    [(ViTConfig, ViTForImageClassification), (DeiTConfig, DeiTForImageClassification),
     (BeitConfig, BeitForImageClassification)],
)  # fmt: skip
def test_every_block_has_an_attention_and_an_mlp_that_can_be_replaced(config, model):
    network = HFImageClassifier(model(config(**SMALL)), "x")
    assert [p.name for p in network.parts()] == ["attn.0", "mlp.0", "attn.1", "mlp.1"]
    names = {s.name: s for s in network.named_sites()}
    assert {"embed", "mlp_in.0", "mlp_out.1", "resid.1"} <= set(names)
    places = 1 + 16 + (config is DeiTConfig)
    assert network.record(network.example(), [names["resid.1"].site])[names["resid.1"].site].shape == (3, places, 16)


def test_loss_divergence_and_choice_have_one_place_an_image(vit):
    batch = vit.sequences("held_out").batch([0, 3, 5])
    with torch.no_grad():
        output = vit(batch)
    logits = output.logits.double().log_softmax(-1)
    torch.testing.assert_close(vit.loss(output, batch).double(), -logits.gather(1, batch.targets))
    assert vit.divergence(output, output, batch).abs().max() < 1e-6
    other = type(output)(logits=torch.zeros_like(output.logits))
    by_hand = F.kl_div(torch.full((3, 10), -torch.log(torch.tensor(10.0))), logits.float(), log_target=True,
                       reduction="none").sum(1)  # fmt: skip
    torch.testing.assert_close(vit.divergence(output, other, batch)[:, 0], by_hand)
    assert vit.choice(output).tolist() == output.logits.argmax(-1)[:, None].tolist()


def test_an_image_without_a_target_has_no_loss(vit):
    batch = vit.sequences("held_out").batch([0, 1])
    unlabelled = Batch(batch.inputs, targets=torch.tensor([[-100], [1]]))
    loss = vit.loss(vit(unlabelled), unlabelled)
    assert loss[0] == 0
    assert loss[1] > 0


def test_neurons_of_an_mlp_write_what_it_writes(vit):
    part = next(p for p in vit.parts() if p.name == "mlp.1")
    neurons = vit.neurons(part)
    acts = vit.record(vit.example(), [neurons.site, part.write])
    torch.testing.assert_close(acts[neurons.site] @ neurons.W + neurons.bias, acts[part.write], atol=1e-5, rtol=1e-4)


def test_the_splits_share_no_image_and_are_the_same_each_time():
    train, held_out = Digits().split("train"), Digits().split("held_out")
    assert (len(train), len(held_out)) == (1437, 360)
    seen = {p.numpy().tobytes() for p in train.pixels}
    twice = sum(p.numpy().tobytes() in seen for p in held_out.pixels)
    assert twice == 0
    assert torch.equal(held_out.pixels, Digits().split("held_out").pixels)
    assert set(held_out.classes.tolist()) == set(range(10))
    with pytest.raises(UnknownName, match="held_out"):
        Digits().split("test")


def test_a_network_of_convolutions_is_refused_here():
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=10)
    config.image_size = 32
    with pytest.raises(BadInput, match="HFConvNet"):
        HFImageClassifier(ResNetForImageClassification(config), "resnet")


def test_a_saved_classifier_opens_by_its_folder_without_images(vit, tmp_path):
    vit.module.save_pretrained(tmp_path)
    opened = open_network(f"hf:{tmp_path}")
    assert isinstance(opened, HFImageClassifier)
    batch = vit.example()
    torch.testing.assert_close(opened(batch).logits, vit(batch).logits)
    assert opened.sequences("train") is None


def test_the_demo_classifier_reads_digits():
    network = open_network("demo:digits-vit")
    held_out = network.sequences("held_out")
    batch = held_out.batch(slice(0, len(held_out)))
    with torch.no_grad():
        right = network.choice(network(batch)) == batch.targets
    assert right.double().mean() >= 0.95
