"""From a data spec and a network to sequences that batches are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.errors import BadData
from understudy.data import ImageFolder, open_data, pack, tokenise

DEFAULT_CONTEXT = 256
MIN_SEQUENCES = 2


def open_sequences(
    network: Network,
    spec: str,
    split: str,
    context: int | None = None,
    enough: int | None = None,
    skip_first: int | None = None,
) -> Sequences:
    """Tokenise and pack `spec` for `network`, or ask the network for its own sequences.

    Rows begin with the network's `opening` where it has one. enough: stop reading an endless source after this many
    tokens. skip_first: see `n_skipped`. Raises BadData if there are fewer than 2 sequences.
    """
    skip = n_skipped(network, skip_first)
    if spec.partition(":")[0] == ImageFolder.scheme:
        return _pictures(network, spec, split)
    own = network.sequences(split)
    if own is not None:
        return _Skipping(own, skip) if skip else own
    if network.tokenizer is None:
        raise BadData(
            f"{network.name} has no tokenizer, so the text of {spec!r} cannot be fed to it. Give its adapter a method "
            "`sequences(split)` that returns what it should run on."
        )
    source = open_data(spec, split)  # pyright: ignore[reportArgumentType]
    length = context or min(DEFAULT_CONTEXT, network.max_context)
    if length > network.max_context:
        raise BadData(f"--context {length} is more than the {network.max_context} tokens {network.name} was made for.")
    packed = pack(
        tokenise(source, network.tokenizer),
        length,
        enough=enough if spec.startswith("hf:") else None,
        opening=network.opening,
        skip_first=skip,
    )
    if len(packed) < MIN_SEQUENCES:
        raise BadData(
            f"{spec} ({split}) holds {packed.n_tokens} tokens, less than {MIN_SEQUENCES} sequences of {length}. "
            "Use more text, or a smaller --context."
        )
    return packed


def _pictures(network: Network, spec: str, split: str) -> Sequences:
    if network.picture is None:
        raise BadData(
            f"{network.name} does not say how it reads pictures, so {spec!r} cannot be fed to it. A model of "
            "transformers says it in preprocessor_config.json; give another network a `picture` (PictureInput)."
        )
    return ImageFolder(spec.partition(":")[2], split, network.picture)  # pyright: ignore[reportArgumentType]


def n_skipped(network: Network, asked: int | None) -> int:
    """Places at the start of each row that do not count: as asked, else 1 where rows begin with an opening token."""
    return asked if asked is not None else int(network.opening is not None and network.tokenizer is not None)


@dataclass(frozen=True)
class _Skipping:
    """A network's own sequences without the first places of each."""

    whole: Sequences
    n: int

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        return self.whole.batch(rows).skipping(self.n)
