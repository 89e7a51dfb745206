"""Tensors on disk: safetensors only, checked before anything is believed, never a pickle."""

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from understudy.core.records.errors import BadWeights

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_MAX_HEADER = 100_000_000
"""Of safetensors, in bytes. Its files begin with this number, and 640 begins as a pickle does."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, tied tensors under each of their names. Raises OSError with its number kept (a full
    disk, a quota)."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous().cpu()
        plain[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    try:
        save_file(plain, str(path))
    except SafetensorError as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None


def load_tensors(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises BadWeights for anything else, pickles by name.

    They are read into memory. `mapped` leaves them in the file, to be read as they are used: they then depend on it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadWeights(f"there is no weights file {path}.")
    with path.open("rb") as f:
        head = f.read(8)
    if head.startswith(_PICKLES) and int.from_bytes(head, "little") > _MAX_HEADER:
        raise BadWeights(
            f"{path} is a pickle (torch.save), which can run code when opened: refused. Convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)."
        )
    try:
        with safe_open(str(path), framework="pt") as f:
            found = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            return found if mapped else {k: t.clone() for k, t in found.items()}
    except (SafetensorError, json.JSONDecodeError, OSError, ValueError) as error:
        raise BadWeights(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. It was cut short or "
            "changed; restore it, or train again."
        ) from None


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises BadWeights if any value is NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadWeights(f"{path}: {name} holds NaN or infinite values.")
