"""Document and Source: text before it is tokenised, and the rule that says which of it training may see."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from understudy.core.records.errors import UnknownName

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.08
"""Expected share of keys that `is_held_out` keeps away from training."""


Span = tuple[int, int, str]
"""First character, the one past the last, label."""


@dataclass(frozen=True)
class Document:
    """One text with a name that is the same on every machine: a path relative to its source, or a row number."""

    name: str
    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Columns of the data beside the text, by name: what slices are made by."""
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """The same for columns that label stretches of the text."""

    @property
    def n_bytes(self) -> int:
        """Length in bytes of UTF-8, the denominator of bits per byte."""
        return len(self.text.encode())

    @classmethod
    def from_row(cls, name: str, row: Mapping[str, Any], column: str) -> "Document":
        """A row of a table whose text is in `column`. Other columns become labels where they hold a string, a number or
        a truth value, and spans where they hold a list of [start, end, label]; what holds anything else is left out."""
        rest = {str(key): value for key, value in row.items() if key != column}
        labels = {key: str(value) for key, value in rest.items() if isinstance(value, str | int | float)}
        spans = {
            key: tuple((start, end, str(label)) for start, end, label in value)
            for key, value in rest.items()
            if isinstance(value, list | tuple) and all(map(_is_span, value))
        }
        return cls(name, row[column], labels, spans)

    def cut(self, start: int, end: int) -> "Document":
        """The characters from start up to end, with the spans that reach into them."""
        spans = {
            column: tuple((max(a, start) - start, min(b, end) - start, x) for a, b, x in given if a < end and b > start)
            for column, given in self.spans.items()
        }
        return replace(self, text=self.text[start:end], spans=spans)


class Source(Protocol):
    """Documents of one split, in an order that does not change; may be iterated more than once."""

    @property
    def name(self) -> str:
        """What `open_data` was asked for."""
        ...

    @property
    def split(self) -> Split: ...

    def __iter__(self) -> Iterator[Document]: ...


def _is_span(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return isinstance(value[0], int) and isinstance(value[1], int) and isinstance(value[2], str | int | float)


def is_held_out(key: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether the documents under `key` are held out; a function of the key alone, on any machine and version."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def check_split(split: str) -> None:
    """Raise UnknownName unless `split` is "train" or "held_out"."""
    if split not in get_args(Split):
        raise UnknownName.among("split", split, get_args(Split))
