"""Tensors in files of others: the header is read and checked first, values one tensor at a time, never a pickle."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from understudy.core.records.errors import BadWeights

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
SIZES = FLOATS | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 100_000_000
MAX_NUMBERS = 1 << 40
"""No dictionary is larger: a header that says so is broken or hostile."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class TensorFile:
    """A checked header: names and shapes. `read(name)` gives one tensor in float32."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """Raises BadWeights for values that are NaN or infinite, or that cannot be read."""
        try:
            tensor = self._read(name).float()
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise BadWeights(f"{self.path}: {name} cannot be read ({error}): truncated or corrupt.") from None
        if not bool(torch.isfinite(tensor).all()):
            raise BadWeights(f"{self.path}: {name} holds NaN or infinite values.")
        return tensor

    def expect(self, wanted: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()) -> None:
        """Raises BadWeights for tensors that are missing, of another shape, or neither wanted nor optional."""
        for name, shape in wanted.items():
            if name not in self.shapes:
                raise BadWeights(f"{self.path} lacks {name} {list(shape)}; it holds {', '.join(self.shapes)}.")
            if self.shapes[name] != shape:
                raise BadWeights(f"{self.path}: {name} is {list(self.shapes[name])} where {list(shape)} is needed.")
        extra = set(self.shapes) - set(wanted) - set(optional)
        if extra:
            raise BadWeights(
                f"{self.path} also holds {', '.join(sorted(extra))}, which this format does not know: leaving it out "
                "could change what the dictionary computes."
            )

    def matrix(self, name: str) -> tuple[int, int]:
        """The two sizes of a matrix. Raises BadWeights."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != 2:
            found = "is not there" if shape is None else f"is {list(shape)}"
            raise BadWeights(f"{self.path}: {name} should be a matrix, but {found}. It holds {', '.join(self.shapes)}.")
        return shape[0], shape[1]


def open_tensors(path: Path) -> TensorFile:
    """A .safetensors or .npz file. Raises BadWeights for anything else, pickles by name."""
    if not path.is_file():
        pickles = [p.name for p in sorted(path.parent.glob("*")) if p.suffix in PICKLES]
        hint = f" Beside it lies {pickles[0]}, a pickle, which can run code when opened. {CONVERT}" if pickles else ""
        raise BadWeights(f"there is no weights file {path}.{hint}")
    with path.open("rb") as f:
        head = f.read(4)
    is_zip = head.startswith(b"PK\x03\x04")
    if path.suffix in PICKLES or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise _pickle(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if is_zip:
        raise _pickle(path)
    return _open_safetensors(path)


CONVERT = (
    "Convert it where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path); "
    "weights_only=True refuses what is not plain tensors."
)


def _pickle(path: Path) -> BadWeights:
    return BadWeights(f"{path} is a pickle (torch.save), which can run code when opened: refused. {CONVERT}")


def _open_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise BadWeights(f"{path} ({size} bytes) is not a safetensors file, or is cut short within its header.")
        try:
            header = json.loads(f.read(length))
            rows = {k: v for k, v in header.items() if k != "__metadata__"}
            checked = {name: _checked(path, name, row, size - 8 - length) for name, row in rows.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadWeights(f"{path} has a header that is not safetensors' ({error}).") from None
    if sum(ends - starts for _, starts, ends in checked.values()) != size - 8 - length:
        raise BadWeights(
            f"{path} has {size} bytes, which is not what its header promises: it was cut short or changed."
        )

    def read(name: str) -> Tensor:
        with safe_open(str(path), framework="pt") as f:
            return f.get_tensor(name).clone()

    return TensorFile(path, {name: shape for name, (shape, *_) in checked.items()}, read)


def _checked(path: Path, name: str, row: Any, n_bytes: int) -> tuple[tuple[int, ...], int, int]:
    """Shape and place of one tensor. Raises BadWeights where header and file cannot both be right."""
    dtype, shape, (start, end) = row["dtype"], row["shape"], row["data_offsets"]
    if dtype not in SIZES:
        raise BadWeights(f"{path}: {name} is stored as {dtype}; floating-point numbers are needed.")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or math.prod(shape) > MAX_NUMBERS:
        raise BadWeights(f"{path}: the header gives {name} the shape {shape}, which no dictionary has.")
    if not start <= end <= n_bytes or end - start != math.prod(shape) * SIZES[dtype]:
        raise BadWeights(
            f"{path}: the header gives {name} the shape {shape} ({dtype}), but bytes {start} to {end} of {n_bytes}: "
            "the file was cut short or changed."
        )
    if dtype not in FLOATS and shape:
        raise BadWeights(f"{path}: {name} is stored as {dtype}; floating-point numbers are needed.")
    return tuple(shape), start, end


def _open_npz(path: Path) -> TensorFile:
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename or "/" in name or "\\" in name or name in shapes:
                    raise BadWeights(f"{path}: {info.filename!r} is not a plain array of this archive: refused.")
                shapes[name] = _npy_shape(path, archive, info)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise BadWeights(f"{path} is not a whole npz archive ({error}): truncated or corrupt.") from None

    def read(name: str) -> Tensor:
        with np.load(path, allow_pickle=False) as archive:
            return torch.from_numpy(np.ascontiguousarray(archive[name]))

    return TensorFile(path, shapes, read)


def _npy_shape(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    with archive.open(info) as f:
        try:
            version = np.lib.format.read_magic(f)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(f)
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            raise BadWeights(f"{path}: {info.filename} has a header that is not numpy's ({error}).") from None
        start = f.tell()
    if dtype.kind != "f":
        raise BadWeights(f"{path}: {info.filename} is stored as {dtype}; floating-point numbers are needed.")
    if start + math.prod(shape) * dtype.itemsize != info.file_size:
        raise BadWeights(f"{path}: {info.filename} says {list(shape)}, which is not the size it has.")
    return tuple(shape)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadWeights."""
    return _mapping(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises BadWeights."""
    return _mapping(path, yaml.safe_load)


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise BadWeights(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(found, dict):
        raise BadWeights(f"{path} holds {type(found).__name__}, not names and values.")
    return found
