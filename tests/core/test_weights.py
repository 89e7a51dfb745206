import errno
import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from understudy.core import weights
from understudy.core.records.errors import BadWeights
from understudy.core.weights import check_finite, load_tensors, save_tensors

TENSORS = {"W": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, 2]), "half": torch.ones(2).bfloat16()}


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", TENSORS)
    return tmp_path / "weights.safetensors"


def test_what_was_saved_is_loaded_bit_for_bit(path):
    loaded = load_tensors(path)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_views_and_parameters_are_saved_by_value(tmp_path):
    table = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    save_tensors(tmp_path / "w", {"t": table.T, "row": table[0]})
    assert torch.equal(load_tensors(tmp_path / "w")["t"], table.detach().T)


def test_what_is_loaded_no_longer_depends_on_the_file(path):
    loaded = load_tensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded["W"], TENSORS["W"])


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(BadWeights, match="there is no weights file"):
            load_tensors(missing)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch.save", "torch.save, old", "0", "1", "2", "3", "4", "5"])
def test_a_pickle_is_refused_and_never_opened(how, tmp_path):
    bad, sprung = tmp_path / "weights.safetensors", tmp_path / "sprung"
    if how.isdigit():
        bad.write_bytes(pickle.dumps(Trap(sprung), protocol=int(how)))
    else:
        torch.save({"W": Trap(sprung)}, bad, _use_new_zipfile_serialization="old" not in how)
    message = "not a whole safetensors file" if how in "01" else "is a pickle"
    with pytest.raises(BadWeights, match=message) as raised:
        load_tensors(bad)
    assert not sprung.exists()
    if how not in "01":
        assert "can run code when opened: refused" in str(raised.value)
        assert "weights_only=True" in str(raised.value)


def huge_header(whole: bytes) -> bytes:
    return struct.pack("<Q", 1 << 62) + whole[8:]


def past_the_end(whole: bytes) -> bytes:
    header = json.dumps({"W": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 64


DAMAGE = {
    "empty": lambda whole: b"",
    "four bytes": lambda whole: whole[:4],
    "cut in the header": lambda whole: whole[:40],
    "cut in the data": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"\0" * 8,
    "garbage": lambda whole: bytes(range(256)) * 4,
    "text": lambda whole: b"<html>404 not found</html>",
    "huge header": huge_header,
    "tensors past the end": past_the_end,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_with_their_path_and_size(damage, path):
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(BadWeights, match=r"\(\d+ bytes\) is not a whole safetensors file.*restore it"):
        load_tensors(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.integers(1, 255))
def test_any_changed_byte_loads_or_is_refused(path, at, flip):
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[at % len(whole)] ^= flip
    path.write_bytes(changed)
    try:
        load_tensors(path)
    except BadWeights:
        pass
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad, path):
    check_finite(path, TENSORS)
    with pytest.raises(BadWeights, match=r"weights\.safetensors: W holds NaN or infinite values"):
        check_finite(path, TENSORS | {"W": torch.tensor([0.0, bad])})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_its_error_number(code, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError) as raised:
        save_tensors(tmp_path / "w", TENSORS)
    assert raised.value.errno == code


def test_a_file_whose_header_begins_as_a_pickle_does_is_read(tmp_path):
    """safetensors begins with the length of its header, and 640 is the bytes 80 02."""
    for n in range(500, 640, 8):
        save_tensors(tmp_path / "w", {"x" * n: torch.ones(1)})
        assert set(load_tensors(tmp_path / "w")) == {"x" * n}
        if (tmp_path / "w").read_bytes()[:8] == struct.pack("<Q", 640):
            return
    pytest.fail("no header had 640 bytes")
