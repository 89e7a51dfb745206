"""Text of one's own: files, folders, globs and .jsonl, split the same way wherever they stand."""

import json

import pytest

from understudy.core.records.errors import BadData, UnknownName
from understudy.data import TextFiles, open_data


def write(folder, n_files: int) -> None:
    folder.mkdir(parents=True)
    for number in range(n_files):
        (folder / f"{number:03}.md").write_text(f"note {number}\n")


def names(where, split: str) -> list[str]:
    return [document.name for document in open_data(f"text:{where}", split)]


def test_a_folder_is_split_by_name_wherever_it_stands(tmp_path):
    write(tmp_path / "a", 100)
    write(tmp_path / "elsewhere" / "b", 100)
    held_out = names(tmp_path / "a", "held_out")
    assert held_out == names(tmp_path / "elsewhere" / "b", "held_out")
    assert held_out == names(tmp_path / "a" / "*.md", "held_out")
    assert sorted(held_out + names(tmp_path / "a", "train")) == [f"{number:03}.md" for number in range(100)]
    assert 1 <= len(held_out) <= 20


@pytest.mark.parametrize("n_files", [20, 21, 25])
def test_something_is_always_held_out(tmp_path, n_files):
    write(tmp_path / "a", n_files)
    assert names(tmp_path / "a", "held_out")


def test_few_documents_are_each_cut_at_a_line_in_their_last_tenth(tmp_path):
    (tmp_path / "one.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    [train], [held_out] = (list(TextFiles(str(tmp_path / "one.txt"), split)) for split in ("train", "held_out"))
    assert train.text + held_out.text == (tmp_path / "one.txt").read_text()
    assert held_out.text.startswith("line ")
    assert 0.1 <= len(held_out.text) / len(train.text + held_out.text) < 0.13


def test_text_without_line_breaks_is_cut_too(tmp_path):
    (tmp_path / "one.txt").write_text("x" * 50)
    assert [len(document.text) for document in TextFiles(str(tmp_path / "one.txt"))] == [45]


def test_each_line_of_a_jsonl_is_a_document(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"row {number}", "id": number}) for number in range(60)) + "\n\n")
    both = list(TextFiles(str(path), "train")) + list(TextFiles(str(path), "held_out"))
    assert sorted(document.text for document in both) == sorted(f"row {number}" for number in range(60))
    assert len({document.name for document in both}) == 60


def test_what_is_not_text_is_left_out_of_a_folder_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("readable text")
    (tmp_path / "b.bin").write_bytes(b"\0\1\2")
    (tmp_path / "c.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / ".hidden").write_text("not for you")
    source = TextFiles(str(tmp_path))
    assert list(source.files) == ["a.txt"]
    assert source.n_skipped == 2


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_text("readable text", encoding="utf-8-sig")
    assert next(iter(TextFiles(str(tmp_path)))).text.startswith("r")


def test_errors_name_what_was_found(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "weights.bin").write_bytes(b"\0\1")
    (tmp_path / "rows.jsonl").write_text('{"body": "x", "id": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')

    def read(name: str) -> None:
        list(TextFiles(str(tmp_path / name)))

    with pytest.raises(UnknownName, match=r"note\.txt' is not a known file or folder\. Did you mean .*notes\.txt"):
        read("note.txt")
    with pytest.raises(BadData, match="is empty"):
        read("notes.txt")
    with pytest.raises(BadData, match="is not UTF-8 text"):
        read("weights.bin")
    with pytest.raises(BadData, match='line 1 has no text under "text"; it has body, id'):
        read("rows.jsonl")
    with pytest.raises(BadData, match="line 2 is not JSON"):
        read("broken.jsonl")
    with pytest.raises(BadData, match="holds no text"):
        read("*.bin")
