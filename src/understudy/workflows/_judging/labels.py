"""What slices are made by: columns of the data, and the kind of each target token where the data are Python source."""

from collections.abc import Sequence

from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.network import Network
from understudy.core.records.errors import BadData, UnknownName, WrongShape
from understudy.core.records.progress import Progress
from understudy.data import Column, Packed, column, open_data
from understudy.data.labels import MAX_VALUES, of_targets
from understudy.data.packing import separator_of
from understudy.data.token_kinds import KINDS, token_kinds

KIND = "kind"


def columns(
    network: Network,
    spec: str,
    sequences: Sequences,
    names: Sequence[str] | None,
    picked: Tensor,
    progress: Progress,
) -> list[Column]:
    """The columns that slices are made by. names: None gives the kind of Python token where it is known.

    A column of more than 50 values keeps the largest on the rows `picked`; that is said. Raises UnknownName for a
    column that is not there, BadData where the data are not tokens.
    """
    if not isinstance(sequences, Packed):
        if names:
            raise BadData(f"{network.name} runs on sequences of its own, which have no columns to slice by.")
        return []
    if names is None:
        kinds = target_kinds(network, spec, "held_out", sequences)
        return [kinds] if kinds else []
    found = [_column(network, spec, sequences, name) for name in dict.fromkeys(names)]
    kept = [one.largest(picked) for one in found]
    for whole, part in zip(found, kept, strict=True):
        if part is not whole:
            progress.say(f"{whole.name} has more than {MAX_VALUES} values: the rest are {part.values[-1]}.")
    return kept


def _column(network: Network, spec: str, packed: Packed, name: str) -> Column:
    own = {key for labels in packed.labels for key in labels}
    if name == KIND and name not in own:
        kinds = target_kinds(network, spec, "held_out", packed)
        if kinds is None:
            raise UnknownName(f"kind is what each token is to Python, and {spec} holds no Python files (*.py).")
        return kinds
    return column(packed, name, spec)


def target_kinds(network: Network, spec: str, split: str, packed: Packed) -> Column | None:
    """For each place the kind of the token it predicts; None without Python files."""
    backend = getattr(network.tokenizer, "backend_tokenizer", None)
    if backend is None or not spec.startswith(("stdlib", "text:")):
        return None
    head = [0] if separator_of(network.tokenizer) is not None else []
    rows, python = [], False
    for document in open_data(spec, split):  # pyright: ignore[reportArgumentType]
        encoding = backend.encode(document.text, add_special_tokens=False)
        known = document.name.endswith(".py")
        python |= known
        kinds = token_kinds(document.text, encoding.offsets) if known else [-1] * len(encoding.ids)
        rows.append([*head, *kinds])
    if not python:
        return None
    try:
        codes = packed.spread([row for row in rows if row])
    except WrongShape:
        return None
    return Column(KIND, KINDS, of_targets(codes, packed))
