"""Contexts in pictures: the picture, and where on it a latent is on."""

import base64
import struct
import zlib
from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from understudy.core.batch import NO_TARGET, Batch
from understudy.core.dictionary import Dictionary
from understudy.core.network import Network
from understudy.core.records.errors import BadInput
from understudy.core.records.scorecard import Context, Image, Picture

BUDGET = 1_000_000
"""Bytes that all pictures of a report may take; they are made smaller until they do."""
SIDES = (160, 128, 96, 80, 64, 48, 32, 24, 16)
CLASSES, MOST_BEFORE = 4, 8


class Pictures:
    """The whole picture of a place's sequence, with the latent's activation at each of its places."""

    def __init__(self, network: Network) -> None:
        if network.picture is None:
            raise BadInput(f"{network.name} does not say how it reads pictures.")
        self.input = network.picture
        self._pixels: list[UInt8[Tensor, "c y x"]] = []
        self._classes: list[int] = []
        self._number: dict[int, int] = {}
        """Of each picture that a context shows, its number in the report."""

    def add(self, batch: Batch) -> None:
        self._pixels += list(self.input.shown(batch.inputs[self.input.name]))
        n = batch.n_sequences
        self._classes += [NO_TARGET] * n if batch.targets is None else batch.targets.reshape(n, -1)[:, 0].tolist()

    def counted(self, shape: tuple[int, ...]) -> None:
        return None

    def context(self, band: str, place: int, shape: tuple[int, ...], at: dict[int, float]) -> Context:
        n = prod(shape)
        row, inside = divmod(place, n)
        before, rows, columns = self._grid(shape)
        on = {p: at[row * n + p] for p in range(n) if row * n + p in at}
        shown = Picture(
            image=self._number.setdefault(row, len(self._number)),
            rows=rows,
            columns=columns,
            cells=[(*divmod(p - before, columns), v) for p, v in on.items() if p >= before],
            before=[on.get(p, 0.0) for p in range(before)] if before <= MOST_BEFORE else [],
            peak=None if inside < before else divmod(inside - before, columns),
            activation=at[place],
            label=self._label(row),
        )
        return Context(band=band, tokens=[], peak=-1, picture=shown)

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Places before those on the picture, and rows and columns of these; one place is the whole picture.

        Where it is not known how places lie on the picture, none of them does.
        """
        if len(shape) == 2:
            return 0, *shape
        n = prod(shape)
        if n == 1:
            return 0, 1, 1
        if self.input.patches is not None and n >= prod(self.input.patches):
            return n - prod(self.input.patches), *self.input.patches
        side, (high, wide) = round(n**0.5), self.input.size
        return (0, side, side) if side * side == n and high == wide else (n, 1, 1)

    def about(
        self, member: Dictionary, chosen: Sequence[int], where: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, ...]
    ) -> list[dict]:
        """The classes of the pictures that each latent is on in, by their share of its activation."""
        classes = torch.tensor(self._classes)
        return [self._shares(classes[place // prod(shape)], value) for place, value in where]

    def _shares(self, classes: Tensor, value: Tensor) -> dict:
        known = [int(c) for c in classes.unique() if c != NO_TARGET]
        shares = {c: float(value[classes == c].sum() / value.sum()) for c in known}
        best = sorted(shares.items(), key=lambda item: -item[1])[:CLASSES]
        return {"raises": [], "lowers": [], "classes": [(self._name(c), share) for c, share in best]}

    def images(self) -> list[Image]:
        """Each picture once, as PNG, as large as the budget allows."""
        wanted = [self._pixels[row] for row in sorted(self._number, key=self._number.__getitem__)]
        made: list[Image] = []
        for side in SIDES:
            made = [_image(thumbnail(pixels, side)) for pixels in wanted]
            if sum(len(i.png) for i in made) <= BUDGET:
                break
        return made

    def _label(self, row: int) -> str:
        found = self._classes[row]
        return "" if found == NO_TARGET else self._name(found)

    def _name(self, number: int) -> str:
        """The first name of a class; its number where the network gives none but numbers."""
        names = self.input.classes
        name = names[number] if number < len(names) else str(number)
        return str(number) if name == f"LABEL_{number}" else name.partition(",")[0]


def thumbnail(pixels: UInt8[Tensor, "c y x"], side: int) -> UInt8[Tensor, "c h w"]:
    """The picture with its longer edge at most `side`, by means over areas."""
    longer = max(pixels.shape[1:])
    if longer <= side:
        return pixels
    high, wide = (max(1, round(n * side / longer)) for n in pixels.shape[1:])
    return F.adaptive_avg_pool2d(pixels.float(), (high, wide)).round().to(torch.uint8)


def _image(pixels: UInt8[Tensor, "c y x"]) -> Image:
    png = base64.b64encode(png_of(pixels)).decode()
    return Image(png=png, height=pixels.shape[1], width=pixels.shape[2])


def png_of(pixels: UInt8[Tensor, "c y x"]) -> bytes:
    """Pixels as a PNG file: 1 channel is grey, 3 are red, green and blue; more or fewer show their mean.

    Source: the PNG specification (W3C, third edition), sections 5, 9 and 11: each line is preceded by its filter,
    here 1 (Sub: what is added to the pixel on the left), all lines in one zlib stream.
    """
    if len(pixels) not in (1, 3):
        pixels = pixels.float().mean(0, keepdim=True).round().to(torch.uint8)
    c, h, w = pixels.shape
    lines = pixels.permute(1, 2, 0).to(torch.int16)
    left = F.pad(lines, (0, 0, 1, 0))[:, :-1]
    coded = ((lines - left) % 256).to(torch.uint8).reshape(h, w * c)
    data = F.pad(coded, (1, 0), value=1).contiguous().numpy().tobytes()
    header = struct.pack(">IIBBBBB", w, h, 8, 2 if c == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
