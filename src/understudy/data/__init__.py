"""Data: text by name, split into what training may see and what it may not, packed into rows, put in order.

A source is one file here and one line in `SOURCES`.
"""

from pathlib import Path

from understudy.core.records.errors import UnknownName
from understudy.data.activations import ORIGIN, Activations, Manifest
from understudy.data.documents import Document, Source, Split
from understudy.data.hub import HubText
from understudy.data.images import ImageFolder
from understudy.data.labels import Column, column
from understudy.data.order import Order
from understudy.data.packing import Packed, Tokens, pack, tokenise
from understudy.data.stdlib import Stdlib
from understudy.data.text import TextFiles

SOURCES = {source.scheme: source for source in (Stdlib, TextFiles, HubText)}
"""Classes with `scheme` and `open(rest, split)`, by the word before the colon in `scheme:rest`."""


def open_data(spec: str, split: Split = "train") -> Source:
    """The source that `spec` names: `stdlib`, `text:FILE_OR_FOLDER_OR_GLOB` or `hf:DATASET[:SPLIT[:COLUMN]]`.

    Raises UnknownName for another word before the colon, or for a split other than "train" and "held_out".
    """
    scheme, _, rest = spec.partition(":")
    if scheme not in SOURCES:
        hint = f"To read that file or folder: text:{spec}" if spec and Path(spec).expanduser().exists() else ""
        raise UnknownName.among("data source", spec, SOURCES, hint)
    return SOURCES[scheme].open(rest, split)
