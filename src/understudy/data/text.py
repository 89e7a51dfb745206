"""`text:WHERE`: text of your own - a file, a folder or a glob; one document per file, or per line of a .jsonl.

A line of a .jsonl is a string or an object with the text under "text"; its other fields label the document.
"""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from understudy.core.records.errors import BadData, UnknownName
from understudy.data.documents import Document, Split, check_split, is_held_out

FEW = 20
"""Below this many documents each one is cut in two; from here on whole documents are held out."""
LAST_SHARE = 0.1
"""Share at the end of each document that is held out when there are few."""


@dataclass(frozen=True)
class TextFiles:
    """The text under `where` on one side of a split that depends on names only, not on where the folder stands.

    From 20 documents on, those are held out whose name hashes low (8%, at least one); the name is the path relative to
    the folder, with the line number in a .jsonl. With fewer, the last tenth of each is held out.
    Raises UnknownName if nothing is there, BadData if it is empty or not text.
    """

    where: str
    split: Split = "train"

    scheme = "text"

    def __post_init__(self) -> None:
        check_split(self.split)

    @classmethod
    def open(cls, rest: str, split: Split) -> "TextFiles":
        if not rest:
            raise BadData("text: needs a file, a folder or a glob after the colon, e.g. text:notes/ or text:'*.md'.")
        return cls(rest, split)

    @property
    def name(self) -> str:
        return f"text:{self.where}"

    @cached_property
    def files(self) -> dict[str, Path]:
        """Text files by name, in the order of their names. What is not text is left out of a folder or glob."""
        path = Path(self.where).expanduser()
        if path.is_file():
            if not _is_text(path):
                raise BadData(f"{path} is not UTF-8 text. Convert it first, or name another file.")
            return {path.name: path}
        found = {name: path for name, path in sorted(self._found(path)) if _is_text(path)}
        if not found:
            raise BadData(f"{self.where} holds no text: no file in it reads as UTF-8.")
        return found

    @cached_property
    def n_skipped(self) -> int:
        """Files of the folder or glob that are not UTF-8 text."""
        path = Path(self.where).expanduser()
        return 0 if path.is_file() else sum(1 for _ in self._found(path)) - len(self.files)

    def __iter__(self) -> Iterator[Document]:
        names = [document.name for document in self._documents()]
        if not names:
            raise BadData(f"{self.where} is empty: there is no text to read in it.")
        if len(names) < FEW:
            parts = (_part(document, self.split) for document in self._documents())
            yield from (part for part in parts if part.text)
            return
        held_out = {name for name in names if is_held_out(name)} or {min(names, key=_hash)}
        for document in self._documents():
            if (document.name in held_out) == (self.split == "held_out"):
                yield document

    def _found(self, path: Path) -> Iterator[tuple[str, Path]]:
        """Every visible file with its name."""
        if path.is_dir():
            inside = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
        elif glob.has_magic(self.where):
            matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
            fixed = Path(*_before_magic(path.parts)) if _before_magic(path.parts) else Path()
            inside = ((file.relative_to(fixed), file) for file in matches if file.is_file())
        else:
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            raise UnknownName.among("file or folder", str(path), sorted(str(file) for file in beside))
        for name, file in inside:
            if not any(part.startswith(".") for part in name.parts):
                yield name.as_posix(), file

    def _documents(self) -> Iterator[Document]:
        for name, path in self.files.items():
            if path.suffix == ".jsonl":
                yield from _lines(name, path)
            elif text := path.read_text(encoding="utf-8-sig"):
                yield Document(name, text)


def _lines(name: str, path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadData(f"{path}, line {number} is not JSON: {error}.") from None
            row = row if isinstance(row, dict) else {"text": row}
            if not isinstance(row.get("text"), str):
                fields = ", ".join(map(str, row))
                raise BadData(f'{path}, line {number} has no text under "text"; it has {fields or "nothing"}.')
            if row["text"]:
                yield Document.from_row(f"{name}:{number}", row, "text")


def _part(document: Document, split: Split) -> Document:
    """The text up to its last tenth, or that tenth; cut after the last line break that leaves at least a tenth."""
    text = document.text
    cut = int(len(text) * (1 - LAST_SHARE))
    cut = text.rfind("\n", cut // 2, cut) + 1 or cut
    return document.cut(0, cut) if split == "train" else document.cut(cut, len(text))


def _is_text(path: Path) -> bool:
    """Whether the file is UTF-8 without NUL bytes; the start is looked at before the rest is read."""
    try:
        with path.open("rb") as file:
            start = file.read(8192)
            if b"\0" in start:
                return False
            (start + file.read()).decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _before_magic(parts: tuple[str, ...]) -> tuple[str, ...]:
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return parts[:first]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
