"""PictureInput: how a picture becomes the numbers that a network reads, and how they are shown again."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class PictureInput:
    """A network reads `(scale * pixel - mean) / std` of pictures of one size, pixels from 0 to 255."""

    size: tuple[int, int]
    """Height and width of what the network reads."""
    channels: int = 3
    """3 for red, green and blue; 1 for grey."""
    mean: tuple[float, ...] = (0.0,)
    """Of each channel; one number is that of all."""
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    resized: tuple[int, int] | int | None = None
    """Height and width, or the length of the shorter edge, that pictures are brought to; None: they stay as they are.
    Then the middle of `size` is taken, with black around it where a picture is smaller."""
    resample: Resample = "bilinear"
    name: str = "pixel_values"
    """The input of the network's forward."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs; a name may hold several, separated by commas."""
    patches: tuple[int, int] | None = None
    """Rows and columns of patches it is cut into, where places are patches; a site may have others before them."""
    unsupported: str = ""
    """What the network wants done to pictures that is not done here; such pictures are refused."""

    def values(self, pixels: UInt8[Tensor, "*n c y x"]) -> Float[Tensor, "*n c y x"]:
        """What the network reads for pixels of the right size."""
        mean, std = self._statistics
        return (pixels.float() * self.scale - mean) / std

    def shown(self, values: Float[Tensor, "*n c y x"]) -> UInt8[Tensor, "*n c y x"]:
        """Inverse of `values`, to the nearest pixel value; what lies outside is black or white."""
        mean, std = self._statistics
        pixels = (values.float().cpu() * std + mean) / self.scale
        return pixels.round().clamp(0, 255).to(torch.uint8)

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in (self.mean, self.std))
        return mean, std
