"""Pictures of features: safe to show, each picture once, shades where the latent is on."""

import base64
import re
import struct
import zlib

import pytest
import torch

from understudy.core.records.scorecard import Context, Feature, Image, Picture
from understudy.web.markup import png
from understudy.web.page import render
from understudy.web.pictures import album, tile
from understudy.workflows._reporting.pictures import png_of, thumbnail

from .reports import report


def pixels_of(data: bytes) -> torch.Tensor:
    """A PNG read by the letter of its specification: header, one stream, lines with filter 1."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        n, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + n
    w, h, bits, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, rest) == (8, [0, 0, 0])
    c = {0: 1, 2: 3}[colour]
    lines = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).reshape(h, 1 + w * c)
    assert (lines[:, 0] == 1).all()
    return (lines[:, 1:].reshape(h, w, c).long().cumsum(1) % 256).to(torch.uint8).permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 1, 1)])
def test_a_png_holds_every_pixel(shape):
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(pixels_of(png_of(pixels)), pixels)


def test_a_thumbnail_is_a_mean_of_areas_and_small_pictures_stay():
    pixels = torch.tensor([[[0, 100], [50, 50]]], dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(thumbnail(pixels, 2), torch.tensor([[[0, 100], [50, 50]]], dtype=torch.uint8))
    assert thumbnail(pixels, 16) is pixels
    assert thumbnail(torch.zeros(3, 100, 50, dtype=torch.uint8), 20).shape == (3, 20, 10)


def image(side=4) -> Image:
    data = base64.b64encode(png_of(torch.zeros(1, side, side, dtype=torch.uint8))).decode()
    return Image(png=data, height=side, width=side)


def picture(cells, peak=(0, 1), rows=2, columns=2, **more) -> Context:
    shown = Picture(image=0, rows=rows, columns=columns, cells=cells, peak=peak, activation=2.0, label="7", **more)
    return Context(band="top", tokens=[], peak=-1, picture=shown)


@pytest.mark.parametrize("data", ["", "x", 'iVBORw0KGgo"/><script>', "iVBORw0KGgo=a", "R0lGODlh"])
def test_nothing_but_a_png_becomes_an_image(data):
    with pytest.raises(ValueError, match="not a PNG"):
        png(data)


def test_shades_lie_where_the_latent_is_on_and_the_place_is_outlined():
    made = tile(picture([(0, 1, 2.0), (1, 0, 0.5)]), [image()], 2.0)
    paths = dict(re.findall(r'<path d="([^"]*)" class="(h\d)"', made))
    assert paths == {"M48 0h48v48h-48z": "h9", "M0 48h48v48h-48z": "h3"}
    assert 'x="49.3" y="1.3" width="45.4"' in made
    assert "class 7: 2 of 4 places on; 2.00 at row 1, column 2" in made


def test_one_place_for_the_whole_picture_has_no_shades_and_a_class_token_is_said():
    assert "<path" not in tile(picture([(0, 0, 2.0)], (0, 0), 1, 1), [image()], 2.0)
    made = tile(picture([], None, before=[2.0]), [image()], 2.0)
    assert "class token" in made
    assert 'class="peak"' not in made
    assert "no picture" in tile(picture([]), [], 2.0)


def test_the_page_holds_each_picture_once_and_stays_small():
    shown = [picture([(i % 2, j % 2, 1.0)]) for i in range(4) for j in range(3)]
    features = [
        Feature(dictionary="m:out", latent=i, density=0.1, maximum=2.0, raises=[], lowers=[], contexts=shown,
                classes=[("7", 0.75), ("<b>", 0.25)])
        for i in range(60)
    ]  # fmt: skip
    page = render(report().model_copy(update={"features": {"m:out": features}, "images": [image()]}))
    assert page.count("data:image/png") == 1
    assert page.count('href="#picture-0"') == 60 * (12 + 6)
    assert "75%" in page
    assert "<b>" not in re.sub(r"<b[ >][^<]*</b>", "", page)
    assert len(page) < 1_000_000
    assert album([]) is None
