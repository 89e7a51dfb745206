"""Graphs from where people have them: folders of ours, JSON files of others."""

import json
from pathlib import Path

from understudy.core.graph import Graph
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadData, BadFolder
from understudy.formats.graph_json_import import from_json


def open_graph(path: Path) -> Graph:
    """An `.acg` folder, every edge checked, or the JSON of circuit-tracer or Neuronpedia.

    Raises BadFolder, BadWeights, BadData.
    """
    if path.suffix != ".json" or path.is_dir():
        return Graph.open(path).checked()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not valid JSON ({error}); it was cut short or edited.") from None
    return from_json(data)


def write_file(path: Path, text: str) -> Path:
    """Write a file whole, making its folder. Raises BadFolder, DiskFull."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RunFolder(path.parent).write_text(path.name, text)
    except OSError as error:
        raise BadFolder(f"cannot write {path}: {error.strerror}.") from None
