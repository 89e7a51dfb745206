"""Activations on disk: a folder of safetensors shards with a manifest, permuted when written, mapped when read.

A shard holds one tensor [rows, width] for each site, and the columns `sequence` and `position` that say where each row
is from. Rows were permuted within chunks, and a chunk is a random set of sequences. So shards can be read from front to
back, or in blocks of neighbouring rows from all of them.
"""

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadActivations, BadFolder, BadWeights
from understudy.core.records.metric import Record
from understudy.core.site import Site
from understudy.core.stream import stream_tensors
from understudy.core.weights import load_tensors

FORMAT = "understudy activations 1"
MANIFEST = "manifest.json"
ORIGIN = ("sequence", "position")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Shard(Record):
    """A file as it was written."""

    chunks: tuple[PositiveInt, ...] = Field(min_length=1)
    """Rows of each chunk of it: sets of sequences whose rows were permuted together."""
    bytes: PositiveInt
    sha256: str

    @property
    def rows(self) -> int:
        return sum(self.chunks)


class Manifest(Record):
    """What the shards hold, and of what network and data."""

    format: Literal["understudy activations 1"] = FORMAT
    network: str
    weights: str
    """Fingerprint of the network's weights."""
    data: str
    split: str
    context: int | None
    skip_first: int | None
    n_sequences: PositiveInt
    """Sequences the data hold, at this context."""
    chunk_sequences: PositiveInt
    """Of them in a chunk."""
    seed: NonNegativeInt
    """Which sequences come when, and the order of rows in a chunk."""
    dtype: Literal["float32", "bfloat16"]
    sites: dict[str, PositiveInt]
    """Width of each."""
    shards: tuple[Shard, ...] = ()
    """Whole ones. Chunk i of all is a function of the above and i."""

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.shards)


class Activations:
    """A folder of shards. What it reads is held against the manifest, and nothing else is believed."""

    def __init__(self, folder: RunFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._mapped: dict[int, dict[str, Tensor]] = {}
        self._known: set[int] = set()
        """Shards that were written here: what they hold is known."""

    @classmethod
    def open(cls, path: Path | str) -> "Activations":
        """To read. Raises BadFolder for what is no such folder, BadActivations for what is not whole."""
        found = cls.read(RunFolder(path))
        if not found.manifest.shards:
            raise BadActivations(f"{path} holds no whole shard yet. Continue with: {found.how_to_continue}")
        for number in range(len(found.manifest.shards)):
            found.check_size(number)
        return found

    @classmethod
    def read(cls, folder: RunFolder) -> "Activations":
        """By the manifest alone. Raises BadFolder, BadActivations."""
        if not folder.file(MANIFEST).is_file():
            raise BadFolder(
                f"{folder.path} holds no activations: it has no {MANIFEST}. `understudy collect --out {folder.path}` "
                "writes one."
            )
        try:
            return cls(folder, Manifest.model_validate(folder.read_json(MANIFEST)))
        except ValidationError as error:
            first = error.errors()[0]
            raise BadActivations(
                f"{folder.file(MANIFEST)} is not a manifest of activations ({'.'.join(map(str, first['loc']))}: "
                f"{first['msg']}). Collect them again."
            ) from None

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.manifest.dtype]

    @property
    def how_to_continue(self) -> str:
        return f"understudy collect --out {self.folder.path} --resume"

    def path(self, number: int) -> Path:
        return self.folder.file(f"{number:06d}.safetensors")

    def write(
        self, number: int, rows: Mapping[Site, Sequence[Tensor]], origin: Sequence[Tensor], chunks: Sequence[int]
    ) -> None:
        """Shard `number`, then the manifest with it. rows, origin: pieces, one after another; origin: [rows, 2],
        sequence and position; chunks: rows of each. Raises DiskFull."""
        tensors = {str(s): [v.to(self.dtype) for v in pieces] for s, pieces in rows.items()}
        for i, name in enumerate(ORIGIN):
            tensors[name] = [o[:, i].to(torch.int32) for o in origin]
        digests: list[str] = []
        path = self.folder.write(self.path(number).name, lambda p: digests.append(stream_tensors(p, tensors)))
        shard = Shard(chunks=tuple(chunks), bytes=path.stat().st_size, sha256=digests[0])
        shards = (*self.manifest.shards[:number], shard, *self.manifest.shards[number + 1 :])
        self.manifest = self.manifest.model_copy(update={"shards": shards})
        self.folder.write_json(MANIFEST, self.manifest.model_dump(mode="json"))
        self._known.add(number)
        self._mapped.pop(number, None)

    def check_size(self, number: int) -> None:
        """Raises BadActivations."""
        path, wanted = self.path(number), self.manifest.shards[number].bytes
        found = path.stat().st_size if path.is_file() else None
        if found != wanted:
            what = "is missing" if found is None else f"has {found:,} bytes in place of {wanted:,}"
            raise BadActivations(f"{path} {what}: it was cut short or changed. Write it again: {self.how_to_continue}")

    def shard(self, number: int) -> dict[str, Tensor]:
        """Tensors by name, mapped. Its digest is checked when it is first read, if it is not from here. Raises
        BadActivations."""
        if number not in self._mapped:
            self.check_size(number)
            path, shard = self.path(number), self.manifest.shards[number]
            if number not in self._known and digest_of(path) != shard.sha256:
                raise BadActivations(f"{path} was changed after it was written. Write it again: {self.how_to_continue}")
            try:
                found = load_tensors(path, mapped=True)
            except BadWeights as error:
                raise BadActivations(str(error)) from None
            wanted = {name: ((shard.rows, width), self.dtype) for name, width in self.manifest.sites.items()}
            wanted |= dict.fromkeys(ORIGIN, ((shard.rows,), torch.int32))
            if {name: (tuple(t.shape), t.dtype) for name, t in found.items()} != wanted:
                raise BadActivations(f"{path} does not hold what the manifest says: {', '.join(wanted)}.")
            self._mapped[number] = found
        return self._mapped[number]

    def rows(self, number: int, at: slice, sites: list[Site]) -> dict[Site, Tensor]:
        """Rows of a shard at some sites, in fp32. Raises BadActivations for NaN and infinite values."""
        shard = self.shard(number)
        found = {site: shard[str(site)][at].to(torch.float32, copy=True) for site in sites}
        for site, value in found.items():
            if not bool(value.sum(dtype=torch.float64).isfinite()):
                raise BadActivations(f"{self.path(number)} holds NaN or infinite values at {site}.")
        return found


def digest_of(path: Path) -> str:
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return hashlib.sha256(whole).hexdigest()
