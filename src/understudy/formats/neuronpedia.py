"""Neuronpedia's explanations: what others say that latents mean, from the files it gives out.

    v1/MODEL/SOURCE/explanations/batch-N.jsonl.gz   a row a line: modelId, layer, index, description, typeName,
                                                    explanationModelName, ...; index is a number written as text
    the API's JSON                                  a list of such rows, or a feature with a list `explanations`

`layer` is Neuronpedia's name of a source: `20-gemmascope-res-16k` is layer 20. Nothing of a file is taken on trust:
sizes are bounded before anything is parsed, text is text.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from understudy.core.records.errors import BadData, UnknownName

LINES, WHOLE = (".jsonl", ".jsonl.gz"), (".json", ".json.gz")
MAX_LINE, MAX_JSON, MAX_BYTES = 1 << 20, 1 << 27, 1 << 32
"""Bytes, decompressed: of one row, of a .json file, of one file."""
MAX_RATIO, ALWAYS = 100, 1 << 24
"""A file may grow a hundredfold when it is decompressed, or to 16 MiB; text grows tenfold."""
MAX_BLANK = 1000
MAX_TEXT = 4000
"""Characters of an explanation that are kept."""


class Explained(NamedTuple):
    """One explanation of one latent, as a file holds it."""

    model: str
    """Neuronpedia's name of the network, `gemma-2-2b`."""
    source: str
    """Its name of the dictionary, `20-gemmascope-res-16k`."""
    latent: int
    text: str
    explainer: str
    """The model that wrote the text, where the file says."""
    method: str
    """How it was asked, Neuronpedia's typeName, where the file says."""
    file: str

    @property
    def layer(self) -> int:
        return int(self.source.partition("-")[0])


def read_explanations(path: Path) -> Iterator[Explained]:
    """Rows of a file, or of all the files of a folder and below. Raises UnknownName, BadData with file and row."""
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.name.endswith((*LINES, *WHOLE)) and p.is_file()]
        # A whole source has its features and activations beside them; explanations of each explainer lie in one folder.
        files = [p for p in files if p.relative_to(path).as_posix().rpartition("/")[0].count("explanations")] or files
        if not files:
            raise UnknownName(f"{path} holds no explanations: no *.jsonl, *.jsonl.gz, *.json or *.json.gz.")
    elif path.is_file():
        files = [path]
    else:
        raise UnknownName(
            f"there is no file of explanations {path}. Neuronpedia gives them out as "
            "v1/MODEL/SOURCE/explanations/batch-N.jsonl.gz (docs.neuronpedia.org, exports): a file or that folder."
        )
    for file in files:
        yield from _rows(file)


def _rows(path: Path) -> Iterator[Explained]:
    try:
        with path.open("rb") as raw:
            is_gz = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            limit = min(MAX_BYTES, max(ALWAYS, MAX_RATIO * path.stat().st_size)) if is_gz else MAX_BYTES
            with gzip.GzipFile(fileobj=raw) if is_gz else raw as stream:
                for where, found in _objects(path, _Bounded(stream, limit, path)):
                    yield from _explained(path, where, found)
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read ({error}): truncated or corrupt.") from None


class _Bounded:
    """Reads from a stream up to a limit. Raises BadData beyond it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int, path: Path) -> None:
        self.stream, self.left, self.path = stream, limit, path

    def line(self) -> bytes:
        found = self.stream.readline(MAX_LINE + 1)
        if len(found) > MAX_LINE:
            raise BadData(f"{self.path} has a row of more than {MAX_LINE >> 20} MiB: it is no file of explanations.")
        return self._count(found)

    def whole(self) -> bytes:
        found = self.stream.read(min(MAX_JSON, self.left) + 1)
        if len(found) > MAX_JSON:
            raise BadData(f"{self.path} holds more than {MAX_JSON >> 20} MiB of JSON. Give rows as .jsonl instead.")
        return self._count(found)

    def _count(self, found: bytes) -> bytes:
        self.left -= len(found)
        if self.left < 0:
            raise BadData(f"{self.path} grows without end when it is decompressed: refused.")
        return found


def _objects(path: Path, stream: _Bounded) -> Iterator[tuple[str, Any]]:
    """JSON values of a file, each with where it stands."""
    if path.name.endswith(WHOLE):
        found = _parsed(path, "", stream.whole())
        rows = found if isinstance(found, list) else [found]
        yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
        return
    n = blank = 0
    while line := stream.line():
        n += 1
        if line.strip():
            yield f"line {n}", _parsed(path, f", line {n}", line)
        elif (blank := blank + 1) > MAX_BLANK:
            raise BadData(f"{path} holds more than {MAX_BLANK} blank lines: it is no file of explanations.")


def _parsed(path: Path, where: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}{where} is not JSON ({str(error).splitlines()[0]}): truncated or corrupt.") from None


def _explained(path: Path, where: str, row: Any) -> Iterator[Explained]:
    """A row's explanation; those inside, for a feature as the API gives it. Rows without a text are left out."""
    rows = [row]
    if isinstance(row, dict) and isinstance(row.get("explanations"), list):
        own = {key: row.get(key) for key in ("modelId", "layer", "index")}
        rows = [own | inner if isinstance(inner, dict) else inner for inner in row["explanations"]]
    for one in rows:
        if not isinstance(one, dict):
            raise BadData(f"{path}, {where}: an explanation is an object with a description, not {type(one).__name__}.")
        if one.get("description") is not None and one["description"] != "":
            yield _one(path, where, one)


def _one(path: Path, where: str, row: dict[str, Any]) -> Explained:
    model, source, text = (_text(path, where, row, key) for key in ("modelId", "layer", "description"))
    index = row.get("index")
    if not isinstance(index, (int, str)) or isinstance(index, bool) or not re.fullmatch("[0-9]{1,12}", str(index)):
        raise BadData(f"{path}, {where}: index should be the number of a latent, but is {_short(index)}.")
    if re.fullmatch("[0-9]{1,4}-.+", source) is None:
        raise BadData(
            f"{path}, {where}: the layer {_short(source)} names no dictionary; one reads like 20-gemmascope-res-16k. "
            "Explanations of a network's own neurons are not shown."
        )
    explainer, method = (
        row.get(k) if isinstance(row.get(k), str) else "" for k in ("explanationModelName", "typeName")
    )
    cut = text.strip() if len(text) <= MAX_TEXT else text[:MAX_TEXT].strip() + "…"
    return Explained(model, source, int(index), cut, explainer or "", method or "", str(path))


def _text(path: Path, where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        known = ", ".join(map(_short, list(row)[:8])) or "nothing"
        raise BadData(f"{path}, {where}: {key} should be text, but is {_short(value)}. The row has {known}.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
