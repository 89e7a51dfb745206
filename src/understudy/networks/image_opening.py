"""Classifiers of pictures: the adapter that fits a model, and how its folder says that pictures are read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.core.picture import PictureInput, Resample
from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.networks._images import ImageSource, class_names
from understudy.networks._structure import block_paths
from understudy.networks.digits import DIGITS, Digits
from understudy.networks.hf_convnet import HFConvNet
from understudy.networks.hf_image_classifier import HFImageClassifier

RESAMPLE: Mapping[int, Resample] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
"""By the numbers that transformers' files use, which are Pillow's."""
SHORTER = ("ConvNext", "PoolFormer", "Bit", "CLIP", "MobileNetV1", "MobileNetV2")
"""Image processors for which a size of one number is that of the shorter edge."""
SQUARE = ("ViT", "DeiT", "Beit", "Pvt", "Siglip")
"""Those for which it is that of both edges. Others may do more than their settings say, and are refused."""
CROP = ("Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "PoolFormer", "Beit")
"""Those that take the middle where a file does not say whether; Beit's did so in transformers 4."""


def open_classifier(
    module: Any, name: str, images: ImageSource | None = None, picture: PictureInput | None = None
) -> HFImageClassifier | HFConvNet:
    """The adapter that fits: patches through a stack, or maps. Raises BadInput where neither does, with the reason."""
    if block_paths(module):
        try:
            return HFImageClassifier(module, name, images, picture)
        except UnderstudyError:
            pass
    try:
        return HFConvNet(module, name, images, picture)
    except UnderstudyError as error:
        raise BadInput(f"{error} Wrap it with AnyModule, whose axes say where its places are.") from None


def own_images(folder: Path) -> Digits | None:
    """The images that a folder's card names; only scikit-learn's digits are known."""
    card = folder / "card.json"
    named = json.loads(card.read_text()).get("data") if card.is_file() else None
    return Digits() if named == DIGITS else None


def picture_input(module: Any, name: str, spec: str, local: bool) -> PictureInput | None:
    """How pictures are read, as preprocessor_config.json of the model says; None where it has none."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        "preprocessor_config.json",
        local_files_only=local,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    try:
        return from_settings(json.loads(Path(path).read_text()), module.config.num_channels, class_names(module))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{spec}: preprocessor_config.json cannot be understood ({error!r}).") from None


def from_settings(said: Mapping[str, Any], channels: int, classes: tuple[str, ...] = ()) -> PictureInput:
    """transformers' settings of an image processor as ours; what is not done here is named in `unsupported`.

    Left out, `do_resize`, `do_rescale` and `do_normalize` are True and `rescale_factor` is 1 / 255, as for every
    processor here. Other defaults differ between processors and versions of transformers, and are not guessed.
    """
    kind = _kind(said)
    resized, size = _resized(said, kind)
    scaled, normal = said.get("do_rescale", True), said.get("do_normalize", True)
    if said.get("do_center_crop") and said.get("crop_size") is not None:
        crop = said["crop_size"]
        size = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
    odd = [k for k in ("do_pad", "do_flip_channel_order", "rescale_offset", "include_top") if said.get(k)]
    odd += [] if kind in SHORTER + SQUARE else [f"image_processor_type {kind or 'unknown'}"]
    odd += [] if size else ["no size"]
    odd += [f"{k} (which it does not say)" for k in _unsaid(said, kind, normal)]
    mean, std = (tuple(map(float, said.get(k) or (0.5,))) for k in ("image_mean", "image_std"))
    if not all(std) or not {len(mean), len(std)} <= {1, channels}:
        odd += [f"image_mean {mean} and image_std {std} of {channels} channels"]
    return PictureInput(
        size=size or (1, 1),
        channels=channels,
        mean=mean if normal else (0.0,),
        std=std if normal else (1.0,),
        scale=float(said.get("rescale_factor", 1 / 255)) if scaled else 1.0,
        resized=resized,
        resample=RESAMPLE[int(said.get("resample") or 0)],
        classes=classes,
        unsupported=", ".join(odd),
    )


def _unsaid(said: Mapping[str, Any], kind: str, normal: bool) -> list[str]:
    """Settings that decide what is read, left out where processors have defaults of their own."""
    wanted = ["image_mean", "image_std"] if normal else []
    wanted += ["resample", "size"] if said.get("do_resize", True) else []
    wanted += ["crop_size"] if said.get("do_center_crop") else []
    lacking = [k for k in wanted if said.get(k) is None]
    lacking += ["do_center_crop"] if kind in CROP and "do_center_crop" not in said else []
    return lacking + (["crop_pct"] if kind == "PoolFormer" and "crop_pct" not in said else [])


def _kind(said: Mapping[str, Any]) -> str:
    """`ViT` for ViTImageProcessor, ViTImageProcessorFast and, as older files have it, ViTFeatureExtractor."""
    name = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    return re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)


def _resized(said: Mapping[str, Any], kind: str) -> tuple[tuple[int, int] | int | None, tuple[int, int] | None]:
    """What pictures are brought to, and the size they then have where that is known.

    With `crop_pct` the shorter edge becomes size / crop_pct and the middle is taken; ConvNeXt does so below 384 pixels
    only, and stretches from there on.
    """
    size = said.get("size")
    if not said.get("do_resize", True) or size is None:
        return None, None
    if not isinstance(size, int) and size.get("shortest_edge") is None:
        both = (int(size["height"]), int(size["width"]))
        return both, both
    edge = int(size if isinstance(size, int) else size["shortest_edge"])
    share = said.get("crop_pct") or (224 / 256 if kind == "ConvNext" else None)
    if share is not None:
        return ((edge, edge) if kind == "ConvNext" and edge >= 384 else int(edge / share)), (edge, edge)
    if isinstance(size, int) and kind in SQUARE:
        return (edge, edge), (edge, edge)
    return edge, None
