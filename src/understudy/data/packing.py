"""Packed: tokenised documents laid end to end in rows of one length, with every boundary kept.

A row may hold the end of one document, several whole ones and the start of another, and a long document runs on in the
next row. Attention crosses the boundaries inside a row, as in ordinary pre-training: a network sees the tokens of the
document before. Targets do not: no token is asked to predict the first token of another document.

Networks that were trained with a beginning-of-sequence token expect one at the start of every row: `opening` puts it
there. What they compute at that place is unlike any other (activations hundreds of times larger): `skip_first` leaves
it out of what counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from understudy.core.batch import NO_TARGET, Batch
from understudy.core.records.errors import BadData, WrongShape
from understudy.data.documents import Document

_AT_ONCE = 64


@dataclass(frozen=True)
class Tokens:
    """One document as token ids."""

    ids: Sequence[int] | np.ndarray
    n_bytes: Sequence[int] | np.ndarray | None = None
    """Bytes of UTF-8 that each id accounts for, 0 for a separator; None where the text is not known."""
    labels: Mapping[str, str | Sequence[str | None]] = field(default_factory=dict)
    """Columns of labels: one of the whole document, or one of each id (None: it has none)."""


@dataclass(frozen=True)
class Packed:
    """Rows of `context` tokens. All fields are [n_rows, context]; only the end of the last row can be padding."""

    tokens: Int32[Tensor, "n_rows context"]
    document: Int32[Tensor, "n_rows context"]
    """Number of the document, counted from 0 in the order given, empty ones not counted; -1 at padding and at an
    opening that was put before a row."""
    position: Int32[Tensor, "n_rows context"]
    """Position in the document, the separator included; 0 where there is none."""
    mask: Bool[Tensor, "n_rows context"]
    """True at real tokens, openings included: what the network attends to."""
    n_bytes: Int32[Tensor, "n_rows context"] | None
    """Bytes of text that each token accounts for; they sum to the length of each document."""
    labels: tuple[Mapping[str, str | Sequence[str | None]], ...] = ()
    """The labels of each document."""
    skip_first: int = 0
    """Places at the start of each row that do not count: batches leave them out of mask and targets."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def targets(self) -> Int[Tensor, "n_rows context"]:
        """The next token where it is real and of the same document, else -100; the last column is always -100, and so
        are the first `skip_first`."""
        return self._targets(slice(None))

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        """The rows as a Batch: `input_ids`, and `attention_mask` only if one of the rows has padding.

        The attention mask is True at every real token; the batch's own mask leaves out the first `skip_first` too.
        """
        rows = _index(rows)
        mask = self.mask[rows]
        inputs = {"input_ids": self.tokens[rows].long()}
        if not bool(mask.all()):
            inputs["attention_mask"] = mask.long()
        tags = {"document": self.document[rows].long(), "position": self.position[rows].long()}
        return Batch(inputs=inputs, mask=mask, targets=self._targets(rows), tags=tags).skipping(self.skip_first)

    def scored_bytes(self, rows: Sequence[int] | slice | Tensor = slice(None)) -> Int[Tensor, "rows context"]:
        """Bytes of the text that the target at each place accounts for, 0 where there is no target.

        Bits per byte = sum of the targets' losses in nats / ln 2 / sum of this.
        Raises BadData if the packing was made from ids without text.
        """
        if self.n_bytes is None:
            raise BadData("Bits per byte needs the text: these rows were packed from token ids alone.")
        rows = _index(rows)
        n_bytes = torch.zeros_like(self.mask[rows], dtype=torch.int64)
        n_bytes[:, :-1] = self.n_bytes[rows][:, 1:].long()
        return n_bytes.masked_fill(self._targets(rows) == NO_TARGET, 0)

    def unpack(self) -> Iterator[Int32[Tensor, " n_tokens"]]:
        """The documents again, in order, their separators included, openings of rows not."""
        own = self.document >= 0
        yield from torch.split(self.tokens[own], torch.bincount(self.document[own].long()).tolist())

    def spread(self, values: Sequence[Sequence[int] | np.ndarray], fill: int = -1) -> Int[Tensor, "n_rows context"]:
        """One number for each token of each document, laid out as the rows are; `fill` where there is no document.

        Raises WrongShape if documents or lengths are others than these.
        """
        own = self.document >= 0
        lengths = torch.bincount(self.document[own].long()).tolist()
        if [len(v) for v in values] != lengths:
            raise WrongShape(f"values of {len(values)} documents do not fit the {len(lengths)} that were packed.")
        out = torch.full(self.tokens.shape, fill, dtype=torch.int64)
        out[own] = torch.from_numpy(np.concatenate([np.asarray(v, np.int64) for v in values]))
        return out

    def _targets(self, rows: slice | Tensor) -> Int[Tensor, "rows context"]:
        tokens, document = self.tokens[rows], self.document[rows]
        targets = torch.full(tokens.shape, NO_TARGET, dtype=torch.int64)
        same = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        targets[:, :-1] = torch.where(same, tokens[:, 1:].long(), NO_TARGET)
        targets[:, : self.skip_first] = NO_TARGET
        return targets


def _index(rows: Sequence[int] | slice | Tensor) -> slice | Tensor:
    return rows if isinstance(rows, slice | Tensor) else torch.tensor(rows, dtype=torch.int64)


def pack(
    documents: Iterable[Tokens | Sequence[int]],
    context: int,
    pad: int = 0,
    enough: int | None = None,
    *,
    opening: int | None = None,
    skip_first: int = 0,
) -> Packed:
    """Lay documents end to end in rows of `context` tokens. No token is dropped; empty documents are.

    documents: `tokenise(...)`, or any iterable of lists of ids. pad: id written after the last token.
    enough: no further document is taken once there are this many tokens; None takes all, for sources that end.
    opening: id that every row begins with; it is put before a row that would begin with another, where it belongs to
    no document and has no target. skip_first: see Packed.
    Raises BadData if there is no token at all, or if a row of `context` would hold no target.
    """
    if context < 2 + skip_first:
        left_out = f" behind the {skip_first} that are left out" if skip_first else ""
        raise BadData(
            f"Rows of {context} tokens have nothing to predict{left_out}; context must be at least {2 + skip_first}."
        )
    given = (item if isinstance(item, Tokens) else Tokens(item) for item in documents)
    kept, n_tokens = [], 0
    for item in given:
        if len(item.ids):
            kept.append(item)
            n_tokens += len(item.ids)
        if enough is not None and n_tokens >= enough:
            break
    if not kept:
        raise BadData("There is no token to pack: the source gave no text.")
    lengths = np.array([len(item.ids) for item in kept])
    ids = np.concatenate([np.asarray(item.ids, np.int32) for item in kept])
    at, opened = _layout(ids, context, opening)
    n_rows = int(at[-1]) // context + 1

    def rows(columns: Iterable[Any], fill: int) -> Tensor:
        flat = np.full(n_rows * context, fill, np.int32)
        flat[at] = np.concatenate([np.asarray(column, dtype=np.int32) for column in columns])
        return torch.from_numpy(flat).view(n_rows, -1)

    tokens, document = rows([ids], pad), rows([np.repeat(np.arange(len(kept)), lengths)], -1)
    mask = document >= 0
    if len(opened):
        tokens[opened, 0], mask[opened, 0] = opening, True  # pyright: ignore[reportArgumentType]
    counted = [item.n_bytes for item in kept if item.n_bytes is not None]
    return Packed(
        tokens=tokens,
        document=document,
        position=rows(map(np.arange, lengths), 0),
        mask=mask,
        n_bytes=rows(counted, 0) if len(counted) == len(kept) else None,
        labels=tuple(item.labels for item in kept),
        skip_first=skip_first,
    )


def _layout(ids: np.ndarray, context: int, opening: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The flat place of each id, and the rows that an opening is put before."""
    if opening is None:
        return np.arange(len(ids)), np.empty(0, np.int64)
    at, opened = np.empty(len(ids), np.int64), []
    start = row = 0
    while start < len(ids):
        head = int(ids[start] != opening)
        stop = min(start + context - head, len(ids))
        at[start:stop] = row * context + head + np.arange(stop - start)
        opened += [row] * head
        start, row = stop, row + 1
    return at, np.array(opened, np.int64)


def tokenise(documents: Iterable[Document], tokenizer: Any, separator: int | None = None) -> Iterator[Tokens]:
    """Token ids of each document, opened by the separator token, with the bytes that each id accounts for.

    tokenizer: one of transformers or of tokenizers. separator: an id; None is the tokenizer's own beginning-of-text,
    else end-of-text token, and no separator if it has neither. A text that spells out a special token reads as text
    or as that token, as the tokenizer decides.
    """
    raw = getattr(tokenizer, "backend_tokenizer", tokenizer)
    opening = separator_of(tokenizer) if separator is None else separator
    head = [] if opening is None else [opening]
    waiting: list[Document] = []
    for document in chain(documents, [None]):
        if document is not None:
            waiting.append(document)
        if waiting and (document is None or len(waiting) == _AT_ONCE):
            texts = [item.text for item in waiting]
            for item, encoding in zip(waiting, _encoded(raw, tokenizer, texts), strict=True):
                ids, ends = encoding
                n_bytes = None if ends is None else [*([0] * len(head)), *_bytes_of(item.text, ends)]
                yield Tokens([*head, *ids], n_bytes, {**item.labels, **_by_id(item, len(head), ends)})
            waiting = []


def separator_of(tokenizer: Any) -> int | None:
    """The id that opens a document: beginning of text, else end of text, else None."""
    if hasattr(tokenizer, "token_to_id"):
        known = (tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|begin_of_text|>", "<s>", "</s>"))
        return next((token for token in known if token is not None), None)
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _encoded(raw: Any, tokenizer: Any, texts: list[str]) -> Iterator[tuple[list[int], list[int] | None]]:
    """(ids, end of each id in characters) per text; no ends from a tokenizer written in Python, which has none."""
    if hasattr(raw, "encode_batch"):
        for encoding in raw.encode_batch(texts, add_special_tokens=False):
            yield encoding.ids, [end for _, end in encoding.offsets]
    else:
        for text in texts:
            yield tokenizer.encode(text, add_special_tokens=False), None


def _by_id(document: Document, n_head: int, ends: list[int] | None) -> dict[str, list[str | None]]:
    """For each column of spans the label of each id: that of the first span which holds its last character.

    Nothing from a tokenizer that does not say where its ids stand in the text.
    """
    out: dict[str, list[str | None]] = {}
    for column, spans in document.spans.items() if ends is not None else ():
        of_character = np.full(len(document.text) + 1, -1)
        for number, (start, end, _) in reversed(list(enumerate(spans))):
            of_character[max(0, start) : max(0, end)] = number
        last = np.maximum(np.asarray(ends, np.int64) - 1, 0)
        names: list[str | None] = [*(label for *_, label in spans), None]
        out[column] = [*names[-1:] * n_head, *(names[number] for number in of_character[last])]
    return out


def _bytes_of(text: str, ends: list[int]) -> np.ndarray:
    """Bytes from the end of the token before to the end of each token; what is left over goes to the last one.

    A character split over several tokens is counted at the first of them, so the sum is the length of the text.
    """
    if not ends:
        return np.empty(0, np.int64)
    reached = np.maximum.accumulate(np.asarray(ends))
    reached[-1] = len(text)
    if not text.isascii():
        sizes = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
        reached = np.concatenate([[0], np.cumsum(sizes)])[reached]
    return np.diff(reached, prepend=0)
