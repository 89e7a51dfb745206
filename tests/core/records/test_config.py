from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveInt, ValidationError

from understudy.core.records.config import Config, read_yaml
from understudy.core.records.errors import BadInput, UnknownName


class Small(Config):
    n_latents: PositiveInt = 8
    """Latents."""
    sparsity: Literal["topk", "batch_topk"] = "topk"
    out: Path = Path("runs")


def test_it_is_frozen_and_documents_its_fields():
    with pytest.raises(ValidationError):
        Small().n_latents = 3
    assert Small.model_fields["n_latents"].description == "Latents."


def test_an_unknown_key_names_the_nearest_and_where_it_stood():
    message = r"'sparisty' is not a known key of Small \(in run.yaml\). Did you mean sparsity\?"
    with pytest.raises(UnknownName, match=message):
        Small.checked({"sparisty": "topk"}, "run.yaml")
    with pytest.raises(UnknownName, match="'7' is not a known key"):
        Small.checked({7: 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_latents": 0}, r"n_latents: Input should be greater than 0 \(got 0\)"),
        ({"n_latents": "many"}, r"n_latents: .*valid integer.*\(got 'many'\)"),
        ({"sparsity": "relu"}, r"sparsity: Input should be 'topk' or 'batch_topk' \(got 'relu'\)"),
        ({"n_latents": 0, "sparsity": "relu"}, "n_latents: .*; sparsity: "),
    ],
)
def test_bad_values_are_all_named_with_what_was_given(values, message):
    with pytest.raises(BadInput, match=message):
        Small.checked(values)


def test_yaml_round_trip_names_every_value(tmp_path):
    made = Small(n_latents=5, out=Path("here"))
    path = tmp_path / "c.yaml"
    path.write_text(made.to_yaml())
    assert Small.from_yaml(path) == made
    assert set(read_yaml(path)) == set(Small.model_fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2\nb: 3", "is not valid YAML: .*line 2"),
        (b"a: 1\n\ttab: 2", "is not valid YAML"),
        (b"- 1\n- 2", "holds list, not a mapping"),
        (b"", "holds NoneType, not a mapping"),
        (b"just text", "holds str, not a mapping"),
        (b"a: !!python/object/apply:os.mkdir [sprung]", "is not valid YAML"),
        (b"\xff\xfe\x00weights\x80", "is not"),
        (b"a: \xe9t\xe9", "is not valid YAML: .*utf-8"),
    ],
)
def test_files_that_hold_no_configuration_are_refused_with_their_path(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"(?s)c\.yaml.*" + message):
        read_yaml(path)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read the configuration .*none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
