"""Document and Source: text before it is tokenised, and the rule that says which of it training may see."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from understudy.core.records.errors import UnknownName

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.08
"""Expected share of keys that `is_held_out` keeps away from training."""


@dataclass(frozen=True)
class Document:
    """One text with a name that is the same on every machine: a path relative to its source, or a row number."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in bytes of UTF-8, the denominator of bits per byte."""
        return len(self.text.encode())


class Source(Protocol):
    """Documents of one split, in an order that does not change; may be iterated more than once."""

    @property
    def name(self) -> str:
        """What `open_data` was asked for."""
        ...

    @property
    def split(self) -> Split: ...

    def __iter__(self) -> Iterator[Document]: ...


def is_held_out(key: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether the documents under `key` are held out; a function of the key alone, on any machine and version."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def check_split(split: str) -> None:
    """Raise UnknownName unless `split` is "train" or "held_out"."""
    if split not in get_args(Split):
        raise UnknownName.among("split", split, get_args(Split))
