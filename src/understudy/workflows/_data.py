"""From a data spec and a network to sequences that batches are drawn from."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..core.batch import Batch
from ..core.network import Network
from ..core.records.errors import BadData
from ..data import open_data, pack, tokenise

DEFAULT_CONTEXT = 256
MIN_SEQUENCES = 2


class Sequences(Protocol):
    """A finite list of sequences. `data.Packed` is one; a network without a tokenizer brings its own."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch: ...


def open_sequences(
    network: Network, spec: str, split: str, context: int | None = None, enough: int | None = None
) -> Sequences:
    """Tokenise and pack `spec` for `network`, or ask the network for its own sequences.

    enough: stop reading an endless source after this many tokens. Raises BadData if there are fewer than 2 sequences.
    """
    own = getattr(network, "sequences", None)
    if own is not None:
        return own(split)
    tokenizer = getattr(network, "tokenizer", None)
    if tokenizer is None:
        raise BadData(
            f"{network.name} has no tokenizer, so the text of {spec!r} cannot be fed to it. Give its adapter a method "
            "`sequences(split)` that returns what it should run on."
        )
    source = open_data(spec, split)  # pyright: ignore[reportArgumentType]
    length = context or min(DEFAULT_CONTEXT, getattr(network, "max_context", DEFAULT_CONTEXT))
    packed = pack(tokenise(source, tokenizer), length, enough=enough if spec.startswith("hf:") else None)
    if len(packed) < MIN_SEQUENCES:
        raise BadData(
            f"{spec} ({split}) holds {packed.n_tokens} tokens, less than {MIN_SEQUENCES} sequences of {length}. "
            "Use more text, or a smaller --context."
        )
    return packed
