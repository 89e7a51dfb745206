"""Neuronpedia's explanations from files laid out as it gives them out; hostile and broken ones are refused by name."""

import gzip
import json

import pytest

from understudy.core.records.errors import BadData, UnknownName
from understudy.formats import neuronpedia
from understudy.formats.neuronpedia import read_explanations


def row(index=7, description="names of rivers", layer="3-gemmascope-res-16k", **more):
    plain = {
        "id": "cl0", "modelId": "gemma-2-2b", "layer": layer, "index": str(index), "description": description,
        "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "embedding": "[0.1,0.2]",
        "createdAt": "2024-07-31T00:00:00.000Z",
    }  # fmt: skip
    return plain | more


def jsonl(*rows) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def read(path):
    return list(read_explanations(path))


def test_an_export_is_read_as_it_is_given_out(tmp_path):
    """v1/MODEL/SOURCE/explanations/batch-N.jsonl.gz; index is text there, and some rows were never written."""
    folder = tmp_path / "v1" / "gemma-2-2b" / "3-gemmascope-res-16k" / "explanations"
    folder.mkdir(parents=True)
    (folder / "batch-0.jsonl.gz").write_bytes(gzip.compress(jsonl(row(7), row(8, ""), row(9, None))))
    (folder / "batch-1.jsonl.gz").write_bytes(gzip.compress(jsonl(row(200, " dates\n", explanationModelName=None))))
    found = read(folder)
    assert [(e.latent, e.text, e.explainer, e.layer) for e in found] == [
        (7, "names of rivers", "gpt-4o-mini", 3), (200, "dates", "", 3)
    ]  # fmt: skip
    first = found[0]
    assert (first.model, first.source, first.method) == ("gemma-2-2b", "3-gemmascope-res-16k", "oai_token-act-pair")
    assert first.file == str(folder / "batch-0.jsonl.gz")
    assert read(folder / "batch-0.jsonl.gz") == found[:1]
    assert read(tmp_path) == found


def test_a_whole_source_has_other_files_beside_its_explanations(tmp_path):
    """model.jsonl and features lie beside; an explainer's folder may bear its name."""
    for name, content in (
        ("model.jsonl", b'{"id": "gemma-2-2b", "description": "a"}'), ("features/batch-0.jsonl", b'{"index": "0"}'),
        ("explanations/batch-0.jsonl", jsonl(row(7))), ("explanations-gpt-4o/batch-0.jsonl", jsonl(row(8))),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [e.latent for e in read(tmp_path)] == [7, 8]


def test_lists_and_features_of_the_api_are_the_same_rows(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([row(7), row(9)]))
    feature = {"modelId": "gemma-2-2b", "layer": "3-gemmascope-res-16k", "index": "7", "activations": [{"tokens": []}]}
    one = {"description": "names of rivers", "explanationModelName": "gpt-4o-mini", "typeName": "np"}
    (tmp_path / "feature.json").write_text(
        json.dumps(feature | {"explanations": [one, one | {"description": "water"}]})
    )
    assert [e.latent for e in read(tmp_path / "list.json")] == [7, 9]
    assert [(e.latent, e.text) for e in read(tmp_path / "feature.json")] == [(7, "names of rivers"), (7, "water")]


BROKEN = {
    "no JSON": (b"{nothing", "line 1 is not JSON"),
    "cut short": (jsonl(row())[:-9], "line 1 is not JSON"),
    "a list in a line": (b"[1, 2]\n", "line 1: an explanation is an object"),
    "text that is none": (jsonl(row(description=["x"])), "description should be text"),
    "no model": (jsonl(row(modelId=None)), "modelId should be text"),
    "neurons": (jsonl(row(layer="3")), "own neurons are not shown"),
    "a layer without a number": (jsonl(row(layer="res-jb")), "names no dictionary"),
    "an index below zero": (jsonl(row("-1")), "index should be the number"),
    "an index that is no number": (jsonl(row("7.5")), "index should be the number"),
    "an index that is true": (jsonl(row() | {"index": True}), "index should be the number"),
    "an endless index": (jsonl(row("9" * 400)), "index should be the number"),
    "depth": (b"[" * 100_000, "not JSON"),
    "bytes that are no text": (b"\xff\xfe\x00", "not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_row_that_cannot_be_is_refused_with_where_it_stands(tmp_path, case):
    content, says = BROKEN[case]
    path = tmp_path / "batch-0.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadData, match=says):
        read(path)


def test_a_broken_row_says_its_line(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(jsonl(row(), row()) + b"\n" + jsonl(row("x")))
    with pytest.raises(BadData, match=r"b\.jsonl, line 4: index"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize("n", [1, 20, 60])
def test_an_archive_cut_short_is_refused(tmp_path, n):
    whole = gzip.compress(jsonl(*(row(i) for i in range(50))))
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-n])
    with pytest.raises(BadData, match="truncated or corrupt"):
        read(tmp_path / "b.jsonl.gz")


def test_archives_that_grow_without_end_are_let_go_early(tmp_path, monkeypatch):
    """64 MiB in less than 1: blank lines, one endless line, rows without end, one value."""
    read_bytes = []
    count = neuronpedia._Bounded._count
    monkeypatch.setattr(
        neuronpedia._Bounded, "_count", lambda s, found: read_bytes.append(len(found)) or count(s, found)
    )
    rows = jsonl(row(description="")) + b" " * (1 << 18)
    bombs = {
        "blank.jsonl.gz": (b"\n" * (1 << 20), "blank lines"), "line.jsonl.gz": (b" " * (1 << 20), "row of more than 1"),
        "rows.jsonl.gz": (rows + b"\n", "grows without end"), "whole.json.gz": (b" " * (1 << 20), "grows without end"),
    }  # fmt: skip
    for name, (piece, says) in bombs.items():
        read_bytes.clear()
        (tmp_path / name).write_bytes(gzip.compress(piece * ((1 << 26) // len(piece)), 1))
        assert (tmp_path / name).stat().st_size < 1 << 20
        with pytest.raises(BadData, match=says):
            read(tmp_path / name)
        assert sum(read_bytes) < 1 << 26


def test_long_texts_are_cut_and_say_so(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(jsonl(row(description="x" * 9000)))
    (found,) = read(tmp_path / "b.jsonl")
    assert found.text == "x" * neuronpedia.MAX_TEXT + "…"


def test_what_is_not_there_says_what_to_give(tmp_path):
    with pytest.raises(UnknownName, match=r"batch-N\.jsonl\.gz"):
        read(tmp_path / "nothing.jsonl")
    (tmp_path / "readme.txt").write_text("no")
    with pytest.raises(UnknownName, match="holds no explanations"):
        read(tmp_path)
