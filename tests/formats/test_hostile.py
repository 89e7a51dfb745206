"""Files that lie, break or try something: each refused by name, before anything of them is used."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.formats import files
from tests.formats.files import N, weights
from understudy.core.records.errors import BadWeights
from understudy.formats import open_source


def safetensors(path, header: dict, n_bytes: int = 0) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(n_bytes))


def row(shape, start=0, end=0, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a shape larger than the file": ({"W_enc": row([1 << 40, 1 << 40], 0, 8)}, "which no dictionary has"),
    "a negative size": ({"W_enc": row([-1, 4], 0, 8)}, "which no dictionary has"),
    "a size that is no number": ({"W_enc": row(["4", 4], 0, 8)}, "which no dictionary has"),
    "bytes beyond the end": ({"W_enc": row([2, 2], 0, 16)}, "cut short or changed"),
    "fewer bytes than the shape": ({"W_enc": row([2, 2], 0, 8)}, "cut short or changed"),
    "whole numbers": ({"W_enc": row([2], 0, 8, "I32")}, "floating-point"),
    "an unknown type": ({"W_enc": row([2], 0, 8, "F4")}, "floating-point"),
    "no shape": ({"W_enc": {"dtype": "F32"}}, "not safetensors'"),
    "bytes no tensor owns": ({"W_enc": row([1], 0, 4)}, "what its header promises"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_safetensors_header_that_cannot_be(tmp_path, case):
    header, says = HEADERS[case]
    folder = files.saelens(tmp_path)
    safetensors(folder / "sae_weights.safetensors", header, 8)
    with pytest.raises(BadWeights, match=says):
        open_source(str(tmp_path))


def test_files_cut_short_anywhere_are_refused(tmp_path):
    path = files.saelens(tmp_path) / "sae_weights.safetensors"
    whole = path.read_bytes()
    for n in (0, 3, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(BadWeights):
            open_source(str(tmp_path))


def test_a_header_of_many_gigabytes_is_not_read(tmp_path):
    path = files.saelens(tmp_path) / "sae_weights.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadWeights, match="header"):
        open_source(str(tmp_path))


class Trap:
    """Would make a file if it were ever loaded."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae_weights.pt"])
def test_a_pickle_is_refused_with_how_to_convert_it_and_never_run(tmp_path, name):
    folder = files.saelens(tmp_path / "d")
    (folder / "sae_weights.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    source = str(folder)
    if name.endswith(".pt"):
        from understudy.formats._files import open_tensors

        with pytest.raises(BadWeights, match="weights_only=True"):
            open_tensors(folder / name)
        with pytest.raises(BadWeights, match="Beside it lies"):
            open_tensors(folder / "sae_weights.safetensors")
    else:
        with pytest.raises(BadWeights, match="weights_only=True"):
            open_source(source)
    assert not (tmp_path / "ran").exists()


def test_torch_saves_archive_under_another_name_is_refused(tmp_path):
    folder = files.saelens(tmp_path)
    torch.save({"W_enc": torch.zeros(2)}, folder / "sae_weights.safetensors")
    with pytest.raises(BadWeights, match="pickle"):
        open_source(str(tmp_path))


def npz(path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def claims(shape: str) -> bytes:
    """An .npy of two numbers whose header says something else."""
    return npy(np.zeros(2, np.float32)).replace(b"(2,)", shape.encode().ljust(4), 1)


MEMBERS = {
    "a path upwards": ({"../evil.npy": npy(np.zeros(2))}, "not a plain array"),
    "an absolute path": ({"/etc/evil.npy": npy(np.zeros(2))}, "not a plain array"),
    "another kind of file": ({"W_enc.pkl": b"x"}, "not a plain array"),
    "a pickled object": ({"W_enc.npy": npy(np.array([{}], dtype=object))}, "floating-point"),
    "whole numbers": ({"W_enc.npy": npy(np.zeros(2, int))}, "floating-point"),
    "a shape larger than it is": ({"W_enc.npy": claims("(9,)")}, "not the size it has"),
    "no numpy header": ({"W_enc.npy": b"nothing"}, "not numpy's"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_an_npz_that_tries_something(tmp_path, case):
    members, says = MEMBERS[case]
    npz(files.gemma_scope(tmp_path, "res", 0), members)
    with pytest.raises(BadWeights, match=says):
        open_source(str(tmp_path))
    assert not (tmp_path.parent / "evil.npy").exists()


def test_an_npz_cut_short(tmp_path):
    path = files.gemma_scope(tmp_path, "res", 0)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadWeights, match="npz"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("b_enc"), "lacks b_enc"),
        (lambda w: w.update(extra=torch.zeros(3)), "also holds extra"),
        (lambda w: w.update(b_dec=torch.zeros(3)), "b_dec is .3. where .12. is needed"),
        (lambda w: w.update(W_dec=torch.zeros(N + 1, 12)), "W_dec"),
        (lambda w: w.update(W_dec=torch.zeros(N, 13)), "an SAE writes what it reads|b_dec"),
    ],
)
def test_tensors_that_are_missing_extra_or_of_another_shape(tmp_path, change, says):
    w = weights()
    change(w)
    with pytest.raises(BadWeights, match=says):
        open_source(str(files.saelens(tmp_path, w)))


def test_values_that_are_not_numbers_are_refused_when_they_are_read(tmp_path):
    w = weights()
    w["W_dec"][3, 4] = float("nan")
    (entry,) = open_source(str(files.saelens(tmp_path, w)))
    with pytest.raises(BadWeights, match="W_dec holds NaN"):
        entry.load()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\x00", "[" * 100_000])
def test_a_configuration_that_is_none(tmp_path, text):
    folder = files.saelens(tmp_path)
    (folder / "cfg.json").write_text(text)
    with pytest.raises(BadWeights, match=r"cfg\.json"):
        open_source(str(tmp_path))


def test_a_yaml_that_would_run_code_is_refused(tmp_path):
    files.circuit_tracer(tmp_path, 1)
    (tmp_path / "config.yaml").write_text(f"feature_input_hook: !!python/object/apply:open [{tmp_path}/ran, w]\n")
    with pytest.raises(BadWeights, match=r"config\.yaml"):
        open_source(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_the_folder_named_in_a_configuration_is_not_followed(tmp_path):
    """Only file names within the folder count; a path elsewhere is not opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    save_file({"W_enc": torch.zeros(2, 2)}, outside / "secret.safetensors")
    files.circuit_tracer(tmp_path / "set", 1, transcoders=[str(outside / "secret.safetensors")])
    with pytest.raises(Exception, match="no dictionary"):
        open_source(str(tmp_path / "set"))
