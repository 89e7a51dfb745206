"""Data by name."""

import pytest

from understudy.core.records.errors import BadData, UnknownName
from understudy.data import SOURCES, HubText, Source, Stdlib, TextFiles, open_data


def test_each_source_is_opened_by_its_word(tmp_path):
    assert open_data("stdlib", "held_out") == Stdlib("held_out")
    assert open_data(f"text:{tmp_path}") == TextFiles(str(tmp_path), "train")
    assert open_data("hf:owner/name") == HubText("owner/name", "train", "train", None)
    assert open_data("hf:owner/name:test:body", "held_out") == HubText("owner/name", "held_out", "test", "body")


@pytest.mark.parametrize("spec", ["stdlib", "text:notes", "hf:owner/name:test:body"])
def test_a_source_keeps_its_name_and_split(spec):
    source: Source = open_data(spec, "held_out")
    assert (source.name, source.split) == (spec, "held_out")


def test_unknown_names_point_to_the_known_ones(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UnknownName, match=r"'stdlb' is not a known data source. Did you mean stdlib?"):
        open_data("stdlb")
    with pytest.raises(UnknownName, match=f"text:{tmp_path}/notes.txt"):
        open_data(f"{tmp_path}/notes.txt")
    with pytest.raises(BadData, match="stdlib takes nothing after it"):
        open_data("stdlib:json")
    with pytest.raises(BadData, match="needs a file, a folder or a glob"):
        open_data("text:")
    with pytest.raises(BadData, match="hf:DATASET:SPLIT:COLUMN"):
        open_data("hf:a:b:c:d")


@pytest.mark.parametrize("scheme", SOURCES)
def test_every_source_checks_its_split(scheme):
    rest = "" if scheme == "stdlib" else ":x"
    with pytest.raises(UnknownName, match="Did you mean held_out"):
        open_data(scheme + rest, "held-out")
