"""The handwritten digits that scikit-learn brings: what the image classifiers of this package run on."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.records.errors import UnderstudyError, UnknownName

DIGITS = "scikit-learn digits"
"""How a card names them."""
HELD_OUT = 5
"""Every fifth image is held out."""


class Digits:
    """1,797 images of 8 x 8 pixels in 10 classes, from 0 (white) to 1. Every fifth is held out, the same everywhere.

    Source: E. Alpaydin and C. Kaynak 1998, test part of Optical Recognition of Handwritten Digits (UCI), as
    `sklearn.datasets.load_digits` gives it.
    """

    def split(self, name: str) -> Sequences:
        """The images of "train" or "held_out". Raises UnknownName, and UnderstudyError without scikit-learn."""
        if name not in ("train", "held_out"):
            raise UnknownName.among("split", name, ["train", "held_out"])
        pixels, classes = self._all
        held_out = torch.arange(len(classes)) % HELD_OUT == 0
        chosen = held_out if name == "held_out" else ~held_out
        return Images(pixels[chosen], classes[chosen])

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UnderstudyError("the digits are scikit-learn's: pip install scikit-learn.") from None
        loaded = load_digits()
        pixels = torch.from_numpy(loaded.images).float()[:, None] / 16  # pyright: ignore[reportAttributeAccessIssue]
        return pixels, torch.from_numpy(loaded.target).long()  # pyright: ignore[reportAttributeAccessIssue]


class Images:
    """Labelled images; one is one sequence with one target."""

    def __init__(self, pixels: Tensor, classes: Tensor) -> None:
        self.pixels, self.classes = pixels, classes

    def __len__(self) -> int:
        return len(self.classes)

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        at = rows if isinstance(rows, (slice, Tensor)) else torch.as_tensor(rows)
        return Batch({"pixel_values": self.pixels[at]}, targets=self.classes[at][:, None])
