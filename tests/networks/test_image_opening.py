"""How a checkpoint says it reads pictures, against the image processors of transformers themselves."""

import json
import re

import pytest
import torch

from understudy.networks import open_network
from understudy.networks.image_opening import from_settings

pytest.importorskip("PIL", reason="pictures are read with Pillow")

import numpy as np
import transformers
from PIL import Image

from understudy.data.images import read_picture

EXACT = {
    "ViT": {}, "ViT, oblong, bicubic": {"size": {"height": 30, "width": 50}, "resample": 3},
    "ViT, bytes": {"do_rescale": False, "do_normalize": False},
    "DeiT": {}, "Beit": {}, "Bit": {}, "CLIP": {}, "Siglip": {}, "MobileNetV1": {}, "MobileNetV2": {}, "Pvt": {},
    "PoolFormer": {}, "ConvNext": {"size": {"shortest_edge": 224}}, "ConvNext, large": {},
    "Bit, crop beyond the edge": {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 28}},
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Coarse pictures, wide and high, so that a wrong filter or a shifted crop shows."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, (h, w) in enumerate([(40, 60), (61, 33)]):
        coarse = rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:h, :w]).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("name", EXACT)
def test_what_the_network_reads_is_what_its_own_processor_gives(name, pictures):
    real = getattr(transformers, f"{name.partition(',')[0]}ImageProcessorPil", None)
    if real is None:
        pytest.skip("this transformers has no image processor without torchvision")
    processor = real(**EXACT[name])
    said = json.loads(processor.to_json_string())
    for path in pictures:
        theirs = processor(Image.open(path), return_tensors="pt")["pixel_values"][0].float()
        ours = from_settings(said, 3)
        assert not ours.unsupported
        torch.testing.assert_close(ours.values(read_picture(path, ours)), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Beit", "Bit", "CLIP", "Siglip", "MobileNetV2", "Pvt", "PoolFormer"])
def test_what_a_file_does_not_say_is_as_transformers_has_it_or_refused(name, pictures):
    """Each setting left out in turn. Once a CLIP without `do_center_crop` was read without one."""
    real = getattr(transformers, f"{name}ImageProcessorPil", None)
    if real is None:
        pytest.skip("this transformers has no image processor without torchvision")
    whole, refused = json.loads(real().to_json_string()), set()
    for key in set(whole) - {"image_processor_type"}:
        said = {k: v for k, v in whole.items() if k != key}
        ours = from_settings(said, 3)
        if ours.unsupported:
            refused.add(key)
            continue
        theirs = real.from_dict(said)(Image.open(pictures[0]), return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(ours.values(read_picture(pictures[0], ours)), theirs, atol=1e-6, rtol=1e-6, msg=key)
    assert {"resample", "image_mean", "image_std", "size"} <= refused
    assert not refused & {"do_resize", "do_rescale", "rescale_factor", "do_normalize"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resample": None}, r"resample \(which it does not say\)"),
        ({"do_center_crop": True, "crop_size": None}, r"crop_size \(which it does not say\)"),
        ({"image_mean": [0.5, 0.5]}, "of 3 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "of 3 channels"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(change, says):
    vit = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}
    vit |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert not from_settings(vit, 3).unsupported
    assert re.search(says, from_settings(vit | change, 3).unsupported)


@pytest.mark.parametrize("name", ["Levit", "EfficientNet", "MobileViT"])
def test_a_processor_that_does_more_than_its_settings_say_is_named(name):
    real = getattr(transformers, f"{name}ImageProcessorPil", None)
    if real is None:
        pytest.skip("this transformers has no image processor without torchvision")
    assert name in from_settings(json.loads(real().to_json_string()), 3).unsupported


def test_older_files_say_sizes_by_one_number():
    deit = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True}
    assert (from_settings(deit, 3).resized, from_settings(deit, 3).size) == ((256, 256), (224, 224))
    clip = deit | {"feature_extractor_type": "CLIPFeatureExtractor"}
    assert from_settings(clip, 3).resized == 256
    conv = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}
    assert (from_settings(conv, 3).resized, from_settings(conv, 3).size) == (256, (224, 224))


@pytest.mark.parametrize("name", ["demo:digits-vit", "demo:digits-cnn"])
def test_a_demo_network_reads_its_own_digits_from_files_as_from_scikit_learn(name, tmp_path):
    network = open_network(name)
    batch = network.sequences("held_out").batch(slice(0, 3))
    for i, pixels in enumerate(network.picture.shown(batch.inputs["pixel_values"])):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / f"{i}.png")
        read = network.picture.values(read_picture(tmp_path / f"{i}.png", network.picture))
        # Its 17 levels of grey are not bytes, so half a byte is lost.
        torch.testing.assert_close(read, batch.inputs["pixel_values"][i], atol=0.5 / 255 + 1e-6, rtol=0)
