"""`hf:DATASET[:SPLIT[:COLUMN]]`: text of a Hugging Face dataset, streamed row by row and never downloaded whole."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.core.records.errors import BadData, UnderstudyError, UnknownName
from understudy.data.documents import Document, Split, check_split, is_held_out

TEXT_COLUMNS = ("text", "content", "document", "body")
"""Where the text is when the dataset has several columns of strings, first match first."""


@dataclass(frozen=True)
class HubText:
    """Rows of one split of a dataset. Ours (`train` or `held_out`) goes by a hash of the row's number within theirs."""

    dataset: str
    """A name on the hub, or a local folder that `datasets` can read."""
    split: Split = "train"
    hub_split: str = "train"
    """The dataset's own split that is read."""
    column: str | None = None
    """The column with the text; None finds it."""

    scheme = "hf"

    def __post_init__(self) -> None:
        check_split(self.split)

    @classmethod
    def open(cls, rest: str, split: Split) -> "HubText":
        parts = rest.split(":")
        if not parts[0] or len(parts) > 3:
            raise BadData(f"hf:{rest} does not read as hf:DATASET, hf:DATASET:SPLIT or hf:DATASET:SPLIT:COLUMN.")
        hub_split = parts[1] if len(parts) > 1 and parts[1] else "train"
        return cls(parts[0], split, hub_split, parts[2] if len(parts) > 2 else None)

    @property
    def name(self) -> str:
        return ":".join(["hf", self.dataset, self.hub_split, *([self.column] if self.column else [])])

    def __iter__(self) -> Iterator[Document]:
        """Raises UnknownName for a dataset, split or column that is not there, BadData if no column is text."""
        column = ""
        for number, row in enumerate(self._rows()):
            column = column or self._column(row)
            name = f"{self.name}:{number}"
            if row[column] and is_held_out(name) == (self.split == "held_out"):
                yield Document.from_row(name, row, column)

    def _column(self, row: Mapping[str, Any]) -> str:
        if self.column is not None:
            if self.column not in row:
                raise UnknownName.among(f"column of {self.dataset}", self.column, row)
            return self.column
        texts = [name for name, value in row.items() if isinstance(value, str)]
        if len(texts) == 1:
            return texts[0]
        known = next((name for name in TEXT_COLUMNS if name in texts), None)
        if known is None:
            raise BadData(
                f"Which column of {self.dataset} is the text? It has {', '.join(row)}. "
                f"Name one: hf:{self.dataset}:{self.hub_split}:COLUMN."
            )
        return known

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UnderstudyError(
                "hf: needs the datasets library, which is optional. Install it with: pip install 'understudy[hf]'"
            ) from None
        try:
            streams = datasets.load_dataset(self.dataset, streaming=True, **_no_code(datasets.load_dataset))
        except FileNotFoundError:  # datasets' own DatasetNotFoundError is one
            raise UnknownName(
                f"{self.dataset!r} is neither a dataset on the hub open to read without a login, nor a local folder."
            ) from None
        except (ConnectionError, OSError) as error:
            raise UnderstudyError(
                f"The dataset {self.dataset!r} could not be reached ({error}). Offline, use text: or stdlib."
            ) from None
        if self.hub_split not in streams:
            raise UnknownName.among(f"split of {self.dataset}", self.hub_split, map(str, streams))
        yield from streams[self.hub_split]


def _no_code(load_dataset: Callable[..., Any]) -> dict[str, bool]:
    """`trust_remote_code=False` for the versions that take it: until 4.0 a dataset could be a script, run unasked."""
    return {"trust_remote_code": False} if "trust_remote_code" in inspect.signature(load_dataset).parameters else {}
