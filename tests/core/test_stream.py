"""Files that safetensors itself reads, whatever the sizes of pieces and of what a disk takes at a time."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from understudy.core import stream
from understudy.core.records.errors import WrongShape
from understudy.core.stream import BLOCK, stream_tensors


def pieces(*lengths, width=(), dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [(100 * torch.randn(n, *width, generator=draw)).to(dtype) for n in lengths]


def check(path, tensors):
    digest = stream_tensors(path, tensors)
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, parts in tensors.items():
        whole = torch.cat(list(parts))
        assert found[name].dtype == whole.dtype
        assert torch.equal(found[name], whole)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", list(stream.NAMES))
def test_every_kind_of_number(tmp_path, dtype):
    check(tmp_path / "x", {"a": pieces(3, 1, 0, 5, width=(7,), dtype=dtype), "b": pieces(2, dtype=torch.int32)})


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_sizes_around_a_block(tmp_path, off):
    """Of the data, and of the file with its header."""
    check(tmp_path / "data", {"a": pieces(BLOCK + off, dtype=torch.uint8)})
    with open(tmp_path / "data", "rb") as f:
        header = 8 + int.from_bytes(f.read(8), "little")
    check(tmp_path / "file", {"a": pieces(BLOCK - header + off, dtype=torch.uint8)})
    check(tmp_path / "many", {"a": pieces(*[BLOCK // 3] * 7, 5, dtype=torch.uint8)})


def test_pieces_that_do_not_lie_in_one_run(tmp_path):
    x = torch.arange(60.0).view(6, 10)
    check(tmp_path / "x", {"columns": [x[:, 2], x[:, 3]], "turned": [x.T, x.T[:4]]})


def test_wide_numbers_lie_at_multiples_of_their_size(tmp_path):
    check(tmp_path / "x", {"a": pieces(3, dtype=torch.bfloat16), "z": pieces(3, dtype=torch.float64)})
    with safe_open(str(tmp_path / "x"), framework="pt") as f:
        assert f.offset_keys() == ["z", "a"]


@pytest.mark.parametrize("parts", [
    [], [torch.zeros(2), torch.zeros(2).int()], [torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2).bool()],
])  # fmt: skip
def test_pieces_that_do_not_fit_are_refused(tmp_path, parts):
    with pytest.raises(WrongShape, match="a: pieces of"):
        stream_tensors(tmp_path / "x", {"a": parts})
    assert not (tmp_path / "x").exists()


def test_what_was_there_is_written_over_whole(tmp_path):
    (tmp_path / "x").write_bytes(b"z" * 3 * BLOCK)
    check(tmp_path / "x", {"a": pieces(5)})


def test_a_disk_that_takes_less_or_coarser_blocks(tmp_path, monkeypatch):
    """Short writes, and EINVAL for what is not a multiple of its own size."""
    write, refused = os.write, []

    def coarse(file, data):
        import fcntl

        if len(data) % 8192 and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data[: max(4096, len(data) // 2)])

    monkeypatch.setattr(os, "write", coarse)
    check(tmp_path / "x", {"a": pieces(BLOCK // 2, 4096 + 5)})
    assert refused or not hasattr(os, "O_DIRECT")


def test_a_file_system_without_it(tmp_path, monkeypatch):
    found, asked = os.open, []

    def none(path, flags, *mode):
        if str(path).endswith("x") and flags & os.O_DIRECT:
            asked.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return found(path, flags, *mode)

    monkeypatch.setattr(os, "open", none)
    check(tmp_path / "x", {"a": pieces(1000)})
    assert asked


def test_a_full_disk_says_so_by_its_number(tmp_path):
    """A real one: the size of a file is limited in a process of its own."""
    code = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\n"
        "from understudy.core.stream import stream_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20))\n"
        "try:\n    stream_tensors(Path(sys.argv[1]), {'a': [torch.zeros(3 << 20)]})\n"
        "except OSError as error:\n    print(error.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(errno.EFBIG)], done.stderr
