"""A safetensors file from pieces of tensors, with its digest, in one pass that leaves the system's page cache alone.

Writing gigabytes through the cache costs a processor more than the copy itself: pages have to be found for them, and
to be written back. Here a block at a time is filled, digested and handed to the disk (O_DIRECT, where there is that).
"""

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from understudy.core.records.errors import WrongShape

BLOCK = 4 << 20
"""Bytes that are written at a time: what processors hold in their caches."""
ALIGNED = 4096
"""A file is written past the cache in multiples of this."""
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip
"""Of numbers, in a safetensors header."""


def stream_tensors(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> str:
    """Write tensors given as pieces [rows, ...], which lie one after another in the file. Returns its SHA-256.

    Raises WrongShape where pieces of a tensor do not fit together, OSError with its number kept (a full disk, a quota).
    """
    for name, parts in tensors.items():
        kinds = {(NAMES.get(piece.dtype), tuple(piece.shape[1:])) for piece in parts}
        if len(kinds) != 1 or None in next(iter(kinds)):
            raise WrongShape(f"{name}: pieces of {kinds or 'nothing'} do not make one tensor of numbers.")
    widest_first = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    entries, at = {}, 0
    for name in widest_first:
        first, size = tensors[name][0], sum(piece.nbytes for piece in tensors[name])
        shape = [sum(len(piece) for piece in tensors[name]), *first.shape[1:]]
        entries[name] = {"dtype": NAMES[first.dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with _Blocks(path) as blocks:
        blocks.add(np.frombuffer(len(header).to_bytes(8, "little") + header, np.uint8))
        for name in widest_first:
            for piece in tensors[name]:
                blocks.add(piece.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
    return blocks.digest.hexdigest()


class _Blocks:
    """A file that is written block by block from one buffer, the last one cut to its length."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = _open(path)
        self._memory = mmap.mmap(-1, BLOCK)  # begins at a page
        self._block = np.frombuffer(self._memory, np.uint8)
        self._filled = self._written = 0

    def add(self, data: np.ndarray) -> None:
        while len(data):
            n = min(len(data), BLOCK - self._filled)
            self._block[self._filled : self._filled + n] = data[:n]
            self._filled += n
            data = data[n:]
            if self._filled == BLOCK:
                self._flush()

    def _flush(self) -> None:
        self.digest.update(memoryview(self._memory)[: self._filled])
        whole = -(-self._filled // ALIGNED) * ALIGNED
        left = memoryview(self._memory)[:whole]
        while left:
            left = left[_write(self._file, left) :]
        self._written, self._filled = self._written + self._filled, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                os.ftruncate(self._file, self._written)
        finally:
            os.close(self._file)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o644)  # a file system that has no such thing


def _write(file: int, data: memoryview) -> int:
    """Bytes written. Through the cache where the disk asks for coarser blocks, as after a block that was cut short."""
    try:
        return os.write(file, data)
    except OSError as error:
        if error.errno != errno.EINVAL or not hasattr(os, "O_DIRECT"):
            raise
    import fcntl

    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
    return os.write(file, data)
