"""`images:FOLDER`: pictures of your own (PNG, JPEG); each sub-folder is a class, named as the network names it."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadData, UnderstudyError, UnknownName
from understudy.data.documents import Split, check_split

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
ONE_IN = 5
"""One picture in so many is held out."""
KEPT = 1 << 29
"""Bytes of pictures that stay in memory once they were read."""
MOST = 1 << 26
"""Pixels of one picture, as it lies in its file and at any step on the way to what the network reads."""


class ImageFolder:
    """Labelled pictures on one side of a split that depends on each file's name only; one is one sequence.

    Held out are those whose name (the path below the folder) hashes so, a fifth; at least two, those that hash lowest.
    The class of a picture is the sub-folder it lies in: a name of a class, one of the names that a class's label lists,
    or the number of an output. Raises UnknownName for no such folder or class, BadData where there are no pictures or
    one cannot be read, UnderstudyError without Pillow.
    """

    scheme = "images"

    def __init__(self, where: str, split: Split, picture: PictureInput) -> None:
        check_split(split)
        if not where:
            raise BadData("images: needs a folder after the colon, e.g. images:photos/.")
        if picture.unsupported:
            raise BadData(
                f"the network wants {picture.unsupported} of its preprocessor_config.json, which is not done here: "
                "prepare the pictures yourself and give the adapter a method `sequences(split)`."
            )
        self.where, self.picture = where, picture
        chosen = self._chosen(split)
        self.files = [(path, label) for name, path, label in self._labelled() if name in chosen]
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        """Pictures as the network reads them, targets [batch, 1]."""
        at = torch.arange(len(self))[rows if isinstance(rows, (slice, Tensor)) else torch.as_tensor(rows)].tolist()
        pixels = torch.stack([self.pixels(i) for i in at])
        classes = torch.tensor([[self.files[i][1]] for i in at])
        return Batch({self.picture.name: self.picture.values(pixels)}, targets=classes)

    def pixels(self, i: int) -> UInt8[Tensor, "c y x"]:
        """One picture at the network's size."""
        if i not in self._kept:
            found = read_picture(self.files[i][0], self.picture)
            if (len(self._kept) + 1) * found.numel() > KEPT:
                return found
            self._kept[i] = found
        return self._kept[i]

    # -- what there is ----------------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> list[tuple[str, Path]]:
        """Every picture by its name, in the order of names. Raises where there is none, or one lies in no class."""
        base = Path(self.where).expanduser()
        if not base.is_dir():
            beside = base.parent.iterdir() if base.parent.is_dir() else ()
            raise UnknownName.among("folder", str(base), sorted(str(p) for p in beside if p.is_dir()))
        found = sorted((p.relative_to(base).as_posix(), p) for p in base.rglob("*") if p.suffix.lower() in SUFFIXES)
        found = [(n, p) for n, p in found if p.is_file() and not any(part.startswith(".") for part in Path(n).parts)]
        if not found:
            other = sorted({p.suffix for p in base.rglob("*") if p.is_file()})
            seen = f"only {', '.join(s or 'files without ending' for s in other[:5])}" if other else "nothing"
            raise BadData(f"{base} holds no pictures ({', '.join(SUFFIXES)}) but {seen}.")
        loose = [n for n, _ in found if "/" not in n]
        if loose:
            raise BadData(
                f"{len(loose)} pictures lie directly in {base}, e.g. {loose[0]}, so their class is not known. Put each "
                f"into a sub-folder named as its class: {base}/{(self.picture.classes or ('CLASS',))[0]}/{loose[0]}."
            )
        if len(found) < 2 * 2:
            raise BadData(f"{base} holds {len(found)} pictures: at least 4 are needed, 2 of them to judge on.")
        return found

    def _labelled(self) -> Iterator[tuple[str, Path, int]]:
        numbers = class_numbers(self.picture.classes)
        for name, path in self._names:
            yield name, path, _class_of(name.split("/")[0], numbers, self.picture.classes)

    def _chosen(self, split: Split) -> frozenset[str]:
        names = [name for name, _ in self._names]
        held_out = {n for n in names if _hash(n) % ONE_IN == 0}
        if not 2 <= len(held_out) <= len(names) - 2:
            held_out = set(sorted(names, key=_hash)[: max(2, len(names) // ONE_IN)])
        return frozenset(held_out if split == "held_out" else set(names) - held_out)


def class_numbers(classes: Sequence[str]) -> Mapping[str, list[int]]:
    """Numbers of the outputs by every name that stands for one, in small letters: its label, each of the names in it
    that commas separate, and its number."""
    out: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(classes):
        for name in dict.fromkeys([label, *label.split(","), str(i)]):
            out[_plain(name)].append(i)
    return out


def _class_of(folder: str, numbers: Mapping[str, list[int]], classes: Sequence[str]) -> int:
    found = numbers.get(_plain(folder), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(f"the sub-folder {folder!r} may be any of the classes {found}: name it by its number.")
    hint = f"Sub-folders are named as the network's {len(classes)} classes, or by their numbers from 0."
    raise UnknownName.among("class of the network", folder, list(classes) or ["none is known"], hint)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


# -- reading ----------------------------------------------------------------------------------------------------------


def read_picture(path: Path, picture: PictureInput) -> UInt8[Tensor, "c y x"]:
    """A file's pixels at the size that the network reads. Raises BadData for what is no whole PNG or JPEG of 8 bits."""
    pillow = _pillow()
    if picture.channels not in (1, 3):
        raise BadData(f"the network reads {picture.channels} channels; pictures have 3, or 1 for grey.")
    try:
        with pillow.open(path, formats=FORMATS) as opened:
            target = _checked_target(path, opened.size, picture)
            mode, found = opened.mode, opened.convert("RGB" if picture.channels == 3 else "L")
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise BadData(
            f"{path} cannot be read as a picture ({error}). Repair it, or take it out of the folder."
        ) from None
    if mode in ("I", "F") or mode.startswith("I;"):
        raise BadData(f"{path} has more than 8 bits a channel ({mode}): convert it first.")
    found = found.resize(target, getattr(pillow.Resampling, picture.resample.upper()))
    pixels = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8)
    return middle(pixels.reshape(found.height, found.width, -1).permute(2, 0, 1), picture.size)


def _checked_target(path: Path, found: tuple[int, int], picture: PictureInput) -> tuple[int, int]:
    """Width and height to resize to, known before a pixel is read. Raises BadData for more pixels than `MOST`."""
    _check_size(path, found, "in the file", found)
    target = _target(found, picture.resized)
    if picture.resized is not None:
        way = f"on the way to {_asked(picture.resized)}, which the network wants"
        _check_size(path, found, way, target)
        _check_size(path, found, way, (target[0], found[1]))  # Pillow stretches the width of all rows first
    _check_size(path, found, "at the size that the network reads", (picture.size[1], picture.size[0]))
    return target


def _check_size(path: Path, found: tuple[int, int], when: str, size: tuple[int, int]) -> None:
    if min(size) < 1 or size[0] * size[1] > MOST:
        raise BadData(
            f"{path} ({found[0]:,} x {found[1]:,} pixels) has {size[0]:,} x {size[1]:,} pixels {when}; from 1 to "
            f"{MOST:,} can be read. Crop it, or take it out of the folder."
        )


def _asked(resized: tuple[int, int] | int) -> str:
    return f"a shorter edge of {resized:,}" if isinstance(resized, int) else f"{resized[1]:,} x {resized[0]:,}"


def _target(found: tuple[int, int], wanted: tuple[int, int] | int | None) -> tuple[int, int]:
    """Width and height to resize to, from width and height."""
    if wanted is None:
        return found
    if not isinstance(wanted, int):
        return wanted[1], wanted[0]
    short, long = sorted(found)
    other = int(wanted * long / short)
    return (wanted, other) if found[0] <= found[1] else (other, wanted)


def middle(pixels: UInt8[Tensor, "c h w"], size: tuple[int, int]) -> UInt8[Tensor, "c y x"]:
    """The middle of a picture; black around it where it is smaller."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        have = pixels.shape[axis]
        if have >= wanted:
            pixels = pixels.narrow(axis, (have - wanted) // 2, wanted)
            continue
        shape = list(pixels.shape)
        shape[axis] = wanted
        larger = pixels.new_zeros(shape)
        larger.narrow(axis, (wanted - have + 1) // 2, have).copy_(pixels)
        pixels = larger
    return pixels.contiguous()


def _pillow() -> Any:
    try:
        from PIL import Image  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnderstudyError("pictures are read with Pillow: pip install 'understudy[images]'.") from None
    return Image
