"""Labels: columns of the data beside the text, laid out as the rows of tokens are, for figures by slice."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from understudy.core.records.errors import UnknownName
from understudy.data.packing import Packed

MAX_VALUES = 50
"""Most slices that one column makes."""


@dataclass(frozen=True)
class Column:
    """One column: the label of the token that each place predicts."""

    name: str
    values: tuple[str, ...]
    codes: Int[Tensor, "n_rows context"]
    """Index into `values`; -1 where the place predicts nothing or the label is not known."""

    def largest(self, rows: Int[Tensor, " n"], most: int = MAX_VALUES) -> "Column":
        """The same with the `most` values that label most places of these rows, the rest as one "other (N values)"."""
        seen = self.codes[rows]
        counts = torch.bincount(seen[seen >= 0], minlength=len(self.values))
        if int((counts > 0).sum()) <= most:
            return self
        order = counts.argsort(descending=True, stable=True)
        kept, n_rest = order[:most].sort().values, int((counts > 0).sum()) - most
        code = torch.full((len(self.values) + 1,), most)
        code[kept], code[-1] = torch.arange(most), -1
        values = (*(self.values[i] for i in kept.tolist()), f"other ({n_rest} values)")
        return replace(self, values=values, codes=code[self.codes])


def column(packed: Packed, name: str, data: str) -> Column:
    """A column of the documents that were packed. Values come in the order in which they are first met.

    Raises UnknownName with the columns that there are; `data`: what was opened, for its message.
    """
    known = Counter(key for labels in packed.labels for key in labels)
    if name not in known:
        raise UnknownName.among(f"column of {data}", name, known, "" if known else NO_COLUMNS)
    lengths = torch.bincount(packed.document[packed.document >= 0].long()).tolist()
    number: dict[str | None, int] = {None: -1}
    codes = []
    for labels, n in zip(packed.labels, lengths, strict=True):
        given = labels.get(name)
        of_ids = [given] * n if given is None or isinstance(given, str) else given
        codes.append([number.setdefault(label, len(number) - 1) for label in of_ids])
    values = tuple(label for label in number if label is not None)
    return Column(name, values, of_targets(packed.spread(codes), packed))


NO_COLUMNS = "Labels come from the fields of a .jsonl beside its text, and from the columns of an hf: dataset."


def of_targets(codes: Int[Tensor, "n_rows context"], packed: Packed) -> Int[Tensor, "n_rows context"]:
    """Codes of tokens moved to the places that predict them, -1 where nothing is predicted."""
    out = torch.full_like(codes, -1)
    out[:, :-1] = codes[:, 1:]
    return out.masked_fill(packed.targets < 0, -1)
