"""Chunks: some rows of a graph, sparse, with what is needed to go on after them; on disk while a graph is being made.

A folder `X.acg.part` holds what a graph is made from (question.json) and one file for each chunk that is done. Work
that was killed reads them back and goes on from there, to the same graph bit for bit.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder
from understudy.core.weights import load_tensors, save_tensors

QUESTION = "question.json"


@dataclass(frozen=True)
class Chunk:
    """Rows as they were computed, each with its largest edges; the rest is in the remainders."""

    columns: Int[Tensor, " m"]
    """Whose rows these are; targets come after all sources."""
    counts: Int[Tensor, " m"]
    sources: Int[Tensor, " e"]
    """Column of each edge's source (int32), ascending within a row."""
    weights: Float[Tensor, " e"]
    remainder: Float[Tensor, " m"]
    """Signed sum of what is not kept (fp64)."""
    remainder_abs: Float[Tensor, " m"]
    probed: Float[Tensor, "m p"]
    """Edges from the sources that the certificate doubles."""
    influence: Float[Tensor, " n"]
    """Of every source, all rows up to these counted."""
    largest: Float[Tensor, "2"]
    """Largest |value| and largest |row sum - value| of all rows up to these (fp64)."""

    def __len__(self) -> int:
        return len(self.columns)


def sparse(
    columns: Tensor, dense: Float[Tensor, "m n"], most: int, probes: Tensor, influence: Tensor, largest: Tensor
) -> Chunk:
    """The `most` largest edges of each row that are not 0; everything else folded into its remainder."""
    mask = dense != 0
    if most < dense.shape[1]:
        size = dense.abs()
        # numpy's partition takes ten times as long where most of a row is 0.
        mask &= size >= size.topk(most, dim=1, sorted=False).values.amin(1, keepdim=True)
        for row in (mask.sum(1) > most).nonzero().squeeze(-1).tolist():  # more than one edge of just this size
            mask[row] = False
            mask[row, size[row].topk(most).indices] = True
    rest = dense.masked_fill(mask, 0)
    return Chunk(
        columns=columns.clone(), counts=mask.sum(1), sources=mask.nonzero()[:, 1].to(torch.int32), weights=dense[mask],
        remainder=rest.sum(1, dtype=torch.float64), remainder_abs=rest.abs().sum(1, dtype=torch.float64),
        probed=dense[:, probes], influence=influence.clone(), largest=largest,
    )  # fmt: skip


class Journal:
    """Where chunks are kept while a graph is made; the base class keeps nothing."""

    def load(self, name: str) -> Chunk | None:
        """A chunk that was done before."""
        return None

    def store(self, name: str, chunk: Chunk) -> None:
        """Keep a chunk."""


NOT_KEPT = Journal()


class ChunkFolder(Journal):
    """Chunks in a folder, for one question. Use it inside `RunFolder.locked`, so that it is one process's alone."""

    def __init__(self, path: Path, question: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """question: all that decides the rows; machine: what they are bit-equal for; as JSON values. Raises BadFolder
        where the folder is of another question."""
        self.folder, self.question, self.machine = RunFolder(path), dict(question), dict(machine)
        self.differs = ""
        """What the machine was before, where it was another; for people."""
        if self.folder.file(QUESTION).exists():
            self._check(self.folder.read_json(QUESTION))

    def _check(self, found: Any) -> None:
        try:
            before, machine = found["question"], found["machine"]
            keys = [*self.question, *(k for k in before if k not in self.question)]
        except (KeyError, TypeError):
            said = f"{self.folder.file(QUESTION)} was edited. Remove {self.folder.path} to begin anew."
            raise BadFolder(said) from None
        changed = [k for k in keys if before.get(k) != self.question.get(k)]
        if changed:
            said = "; ".join(f"{k} was {before.get(k)!r}, now {self.question.get(k)!r}" for k in changed)
            raise BadFolder(
                f"{self.folder.path} holds rows of another graph: {said}. Ask the same question to carry on, choose "
                f"another --out, or remove {self.folder.path} to begin anew."
            )
        other = [f"{k} {machine.get(k)}, now {v}" for k, v in self.machine.items() if machine.get(k) != v]
        if other:
            self.differs = f", made with {', '.join(other)}: not bit for bit what one of them makes"

    @property
    def n_chunks(self) -> int:
        return len(list(self.folder.path.glob("[0-9t]*.safetensors")))

    def load(self, name: str) -> Chunk | None:
        path = self.folder.file(f"{name}.safetensors")
        if not path.exists():
            return None
        found = load_tensors(path)
        if set(found) != {f.name for f in fields(Chunk)}:
            raise BadFolder(f"{path} does not hold rows of a graph. Remove {self.folder.path} to begin anew.")
        return Chunk(**found)

    def store(self, name: str, chunk: Chunk) -> None:
        if not self.folder.file(QUESTION).exists():
            self.folder.write_json(QUESTION, {"question": self.question, "machine": self.machine})
        tensors = {f.name: getattr(chunk, f.name) for f in fields(Chunk)}
        self.folder.write(f"{name}.safetensors", lambda path: save_tensors(path, tensors))

    def remove(self) -> None:
        """The graph is finished: its chunks are not needed any more."""
        shutil.rmtree(self.folder.path, ignore_errors=True)
