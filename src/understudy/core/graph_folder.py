"""A graph on disk: a folder with a card, a table of nodes and the rows of edges. Whole or absent, never a pickle.

graph.json        the card, what was done since, and how many nodes and edges there are
nodes.parquet     one line a node: opens in pandas, polars and duckdb
rows.safetensors  edges by target; mapped into memory, not read, when the folder is opened
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from understudy.core.records.artifact import write_folder
from understudy.core.records.errors import BadFolder, BadWeights
from understudy.core.weights import load_tensors, save_tensors

FORMAT = 1
CARD, NODES, ROWS = "graph.json", "nodes.parquet", "rows.safetensors"
MOST_NODES = 2**31 - 1
"""Edges name their source by a 32-bit number."""

LAYOUT = {"offsets": torch.int64, "sources": torch.int32, "weights": torch.float32}

Columns = Mapping[str, Tensor | Sequence[str]]


class Parts(NamedTuple):
    """What a folder holds, as plain data."""

    record: dict[str, Any]
    nodes: dict[str, Tensor | list[str]]
    rows: dict[str, Tensor]


def write(path: Path, record: dict[str, Any], nodes: Columns, rows: Mapping[str, Tensor]) -> None:
    """Write a folder in one move. Raises BadFolder if something is there already, DiskFull."""

    def make(folder: Path) -> None:
        columns = {k: pa.array(v.cpu().numpy() if isinstance(v, Tensor) else list(v)) for k, v in nodes.items()}
        save_tensors(folder / ROWS, rows)
        pq.write_table(pa.table(columns), folder / NODES)
        text = json.dumps({"format": FORMAT, **record}, indent=1, allow_nan=False)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    write_folder(path, make)


def read(path: Path) -> Parts:
    """Read card and nodes and map the rows. Raises BadFolder for the folder or its card, BadWeights for the rest."""
    record = _card(path)
    rows = load_tensors(path / ROWS, mapped=True)
    if {k: (v.dtype, v.ndim) for k, v in rows.items()} != {k: (dtype, 1) for k, dtype in LAYOUT.items()}:
        found = ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in sorted(rows.items()))
        raise BadWeights(f"{path / ROWS} holds {found or 'nothing'}, not the offsets, sources and weights of rows.")
    n = len(rows["offsets"]) - 1
    if not 0 <= n <= MOST_NODES:
        raise BadWeights(f"{path / ROWS} holds rows of {n} nodes; from 0 to {MOST_NODES} can be numbered.")
    if record.get("nodes") != n or record.get("edges") != len(rows["sources"]):
        raise BadFolder(
            f"{path} does not fit together: {CARD} says {record.get('nodes')} nodes and {record.get('edges')} edges, "
            f"{ROWS} holds {n} and {len(rows['sources'])}. A file was exchanged or edited."
        )
    return Parts(record, _nodes(path / NODES, n), rows)


def _card(path: Path) -> dict[str, Any]:
    file = path / CARD
    if not path.is_dir():
        near = sorted(p.parent.as_posix() for p in path.absolute().parent.glob(f"*/{CARD}"))[:5]
        raise BadFolder(f"there is no graph at {path}." + (f" Graphs beside it: {', '.join(near)}." if near else ""))
    if not file.is_file():
        raise BadFolder(f"{path} is not a graph: it has no {CARD}. `understudy attribute --out {path}` makes one.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFolder(f"{file} is not valid JSON ({error}); it was cut short or edited.") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise BadFolder(f"{file} is of format {found!r}; this version of Understudy reads format {FORMAT}.")
    return record


def _nodes(file: Path, n: int) -> dict[str, Tensor | list[str]]:
    if not file.is_file():
        raise BadWeights(f"there is no {file}: the graph was cut short.")
    try:
        # A few bytes can claim any number of lines, so the count is checked before they are read.
        found = pq.read_metadata(file).num_rows
        if found != n:
            raise BadWeights(f"{file} holds {found} nodes but {ROWS} the rows of {n}: a file was exchanged or edited.")
        table = pq.read_table(file)
        return {name: _column(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        raise BadWeights(f"{file} is not a whole parquet file: {error}. It was cut short or changed.") from None


def _column(column: pa.ChunkedArray) -> Tensor | list[str]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.to_pylist()
    if column.null_count:
        raise ValueError("a column has missing values")
    return torch.from_numpy(np.array(column.to_numpy()))
