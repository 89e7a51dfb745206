"""Datasets of the hub: which column is read, which rows are held out, what is said when something is missing."""

import json
import sys
from types import SimpleNamespace

import pytest

from understudy.core.records.errors import BadData, UnderstudyError, UnknownName
from understudy.data import HubText


def serve(monkeypatch, splits: dict) -> None:
    """Stand in for the datasets library with rows in memory."""
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name, streaming: splits))


def test_rows_are_split_by_their_number(monkeypatch):
    serve(monkeypatch, {"train": [{"id": n, "text": f"row {n}"} for n in range(200)]})
    train, held_out = ([item.text for item in HubText("d", split)] for split in ("train", "held_out"))
    assert sorted(train + held_out) == sorted(f"row {n}" for n in range(200))
    assert 4 < len(held_out) < 40


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({"id": 1, "article": "a"}, None, "a"),
        ({"title": "t", "text": "a"}, None, "a"),
        ({"title": "t", "content": "a"}, None, "a"),
        ({"title": "t", "text": "a"}, "title", "t"),
    ],
)
def test_the_text_column_is_found(monkeypatch, row, column, found):
    serve(monkeypatch, {"train": [row] * 5})
    assert {item.text for item in HubText("d", "train", "train", column)} == {found}


def test_other_columns_become_labels(monkeypatch):
    serve(monkeypatch, {"train": [{"text": "a", "language": "de", "stars": 4, "who": [[0, 1, "x"]], "raw": b"x"}] * 9})
    document = next(iter(HubText("d")))
    assert document.labels == {"language": "de", "stars": "4"}
    assert document.spans == {"who": ((0, 1, "x"),)}


def test_a_datasets_own_code_is_never_run(monkeypatch):
    """Versions that could run a dataset's script are told not to; later ones, which cannot, are not asked."""
    asked = []

    def load_dataset(name, streaming, trust_remote_code=None):
        asked.append(trust_remote_code)
        return {"train": [{"text": "a"}] * 5}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    list(HubText("d"))
    assert asked == [False]


def test_errors_name_columns_and_splits(monkeypatch):
    serve(monkeypatch, {"train": [{"question": "q", "answer": "a"}], "test": []})
    with pytest.raises(BadData, match=r"It has question, answer. Name one: hf:d:train:COLUMN"):
        list(HubText("d"))
    with pytest.raises(UnknownName, match=r"'answr' is not a known column of d\. Did you mean answer\?"):
        list(HubText("d", "train", "train", "answr"))
    with pytest.raises(UnknownName, match=r"'validation' is not a known split of d. Known: train, test."):
        list(HubText("d", "train", "validation"))


def test_without_the_library_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnderstudyError, match=r"pip install 'understudy\[hf\]'"):
        list(HubText("d"))


@pytest.mark.filterwarnings("ignore")
def test_a_local_folder_through_the_real_library(tmp_path):
    pytest.importorskip("datasets", reason="the optional extra [hf] is not installed")
    rows = [{"text": f"row {number}", "id": number} for number in range(50)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [document.text for split in ("train", "held_out") for document in HubText(str(tmp_path), split)]
    assert sorted(found) == sorted(row["text"] for row in rows)
    with pytest.raises(UnknownName, match="is not a known split"):
        list(HubText(str(tmp_path), "train", "test"))
    with pytest.raises(UnknownName, match="neither a dataset on the hub"):
        list(HubText(str(tmp_path / "missing")))
