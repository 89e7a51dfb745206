"""The standard library as a corpus: what belongs to it, and a split that no version of Python can move."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from understudy.core.records.errors import BadData, UnknownName
from understudy.data.stdlib import KIN, Stdlib, is_part, split_key, split_of

HERE = Path(__file__).parent
VERSIONS = ("3.11", "3.13")


def pinned(version: str) -> dict[str, str]:
    """Split by path of one Python version's modules, as it was when the demo network was trained."""
    lines = (HERE / f"stdlib_paths_{version}.txt").read_text().splitlines()
    return {line[2:]: "held_out" if line[0] == "*" else "train" for line in lines}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_split_is_the_one_the_demo_network_was_trained_on(version):
    expected = pinned(version)
    assert {path: split_of(path) for path in expected} == expected


def test_a_module_that_moved_between_versions_stays_on_its_side():
    old, new = (set(pinned(version)) for version in VERSIONS)
    moves = [("pathlib.py", "pathlib/_local.py"), ("sysconfig.py", "sysconfig/__init__.py")]
    moves += [("datetime.py", "_pydatetime.py"), ("zipfile.py", "zipfile/_path/__init__.py")]
    for before, after in moves:
        assert before in old
        assert after in new
        assert split_of(before) == split_of(after)


def test_kin_share_a_side_and_no_module_has_two_families():
    assert all(len({split_of(path) for path in group}) == 1 for group in KIN)
    assert max(Counter(path for group in KIN for path in group).values()) == 1
    assert split_key("bz2.py") == split_key("lzma.py") == "bz2.py"
    assert split_key("json/__init__.py") == split_key("json.py")
    assert split_key("__init__.py") == "__init__.py"


@pytest.mark.skipif(not (3, 11) <= sys.version_info < (3, 14), reason="the table of kin covers Python 3.11 to 3.13")
def test_no_held_out_module_has_a_near_duplicate_in_training():
    def shingles(text: str) -> set[int]:
        words = [hash(word) for word in re.findall(r"\w+", re.sub(r"(?m)^\s*#.*$", "", text))]
        return {hash(tuple(words[i : i + 8])) for i in range(len(words) - 7)}

    held_out = {document.name: shingles(document.text) for document in Stdlib("held_out")}
    owners: dict[int, list[str]] = {}
    for name, found in held_out.items():
        for shingle in found:
            owners.setdefault(shingle, []).append(name)
    copies = []
    for document in Stdlib("train"):
        found = shingles(document.text)
        shared = Counter(name for shingle in found & owners.keys() for name in owners[shingle])
        for name, n in shared.items():
            share = n / min(len(found), len(held_out[name]))  # of the shorter file, comment lines aside
            if (n >= 100 and share >= 0.25) or (n >= 25 and share >= 0.4):
                copies.append((name, document.name, n, round(share, 2)))
    assert copies == []


def test_about_eight_percent_of_the_bytes_are_held_out_and_nothing_is_in_both():
    train, held_out = ({item.name: item for item in Stdlib(split)} for split in ("train", "held_out"))
    held_bytes = sum(item.n_bytes for item in held_out.values())
    assert not train.keys() & held_out.keys()
    assert 0.06 < held_bytes / (held_bytes + sum(item.n_bytes for item in train.values())) < 0.10
    assert all(is_part(name) for name in train)


def test_what_is_left_out(tmp_path):
    kept = ["json/decoder.py", "pathlib.py", "testing.py"]
    left = ["site-packages/torch/nn.py", "test/test_os.py", "idlelib/idle_test/x.py", "encodings/ascii.py", "x.pyc"]
    left += ["_sysconfigdata__linux.py", "config-3.11-x86/python-config.py", "lib2to3/pgen.py", "unittest/tests/a.py"]
    for path in kept + left:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")
    assert Stdlib(root=tmp_path).paths == tuple(kept)


def test_files_that_are_not_utf8_are_skipped_and_counted(tmp_path):
    train = [path for path, split in pinned("3.11").items() if split == "train"][:3]
    for path in train:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("é = 1\n", encoding="latin-1" if path == train[1] else "utf-8")
    source = Stdlib("train", root=tmp_path)
    assert [document.name for document in source] == [train[0], train[2]]
    assert source.n_skipped == 1


def test_a_python_without_sources_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(BadData, match=r"zipped or compiled.*text:FOLDER"):
        list(Stdlib(root=tmp_path))
    with pytest.raises(UnknownName, match=r"'heldout' is not a known split. Did you mean held_out?"):
        Stdlib("heldout")
