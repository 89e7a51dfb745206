"""PictureInput: pixels to what a network reads, and back."""

import pytest
import torch

from understudy.core.picture import PictureInput


@pytest.mark.parametrize(
    "said",
    [
        PictureInput((2, 3)),
        PictureInput((2, 3), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        PictureInput((2, 3), mean=(1.0,), std=(-1.0,)),  # ink on white
        PictureInput((2, 3), scale=1.0),
    ],
)
def test_every_pixel_value_comes_back(said):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(said.shown(said.values(pixels)), pixels)


def test_values_are_those_of_the_formula_and_what_lies_outside_is_black_or_white():
    said = PictureInput((1, 1), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    values = said.values(torch.tensor([[[255]], [[0]], [[51]]], dtype=torch.uint8))
    torch.testing.assert_close(values.flatten(), torch.tensor([1.0, -0.25, 0.1]))
    assert said.shown(torch.tensor([[[9.0]], [[-9.0]], [[0.0]]])).flatten().tolist() == [255, 0, 0]
