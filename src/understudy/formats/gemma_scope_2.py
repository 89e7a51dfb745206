"""Gemma Scope, second release (Gemma 3): SAEs and transcoders of one layer, and cross-layer transcoders (CLTs).

{resid_post|attn_out|mlp_out|transcoder}[_all]/layer_{i}_.../params.safetensors   w_enc [d, n], w_dec [n, o], b_enc,
    b_dec, threshold [, affine_skip_connection [d, o]], beside config.json with the hooks
clt/width_.../params_layer_{i}.safetensors   the same, but w_dec [n, L, o]: [:, j] is what layer i's latents write in
    layer j, for all L layers. Biases and skips belong to the layer's own site.

JumpReLU, x as it is: pre = x w_enc + b_enc, f = relu(pre) (pre > threshold), f w_dec + b_dec [+ x affine]. Crosscoders
of this release read the layers they write and are not read here.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.core.records.errors import BadWeights
from understudy.formats._entry import THRESHOLD, Entry, Wanted, at_least_zero, everything
from understudy.formats._files import TensorFile, open_tensors, read_json
from understudy.formats.gemma_scope import SKIP, entry

NAME = "gemma-scope-2"
CONFIG, WEIGHTS, LAYER = "config.json", "params.safetensors", "params_layer_{}.safetensors"
NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
REPOSITORY = re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)(?![\w-])")
FOLDER = re.compile(r"(?:^|/)(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_width_[^/]+$")
BEFORE_MLP, AFTER_MLP = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
HOOKS = {
    "resid_post": ("output", "output"), "attn_out": ("self_attn.o_proj.input",) * 2, "mlp_out": (AFTER_MLP,) * 2,
    "transcoder": (BEFORE_MLP, AFTER_MLP),
}  # fmt: skip
"""Below model.layers.{i}; what config.json says where there is one."""
EARLIER = 1e-6
"""Largest weight to an earlier layer, as a share of the largest to this or a later one, that still counts as none."""


def find(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    """Every dictionary at or below `root`. Raises BadWeights."""
    for path in sorted(root.rglob(WEIGHTS)):
        has_config = (path.parent / CONFIG).is_file()
        is_known = has_config or (REPOSITORY.search(path.absolute().as_posix()) and FOLDER.search(_above(path)))
        if is_known and wanted(path.parent.relative_to(root).as_posix()):
            yield _one(root, path)
    for path in sorted(root.rglob(LAYER.format(0))):
        if wanted(_address(root, path.parent, 0)):
            yield from _clt(root, path.parent)


def _address(root: Path, folder: Path, layer: int) -> str:
    return f"{folder.relative_to(root).as_posix()}/{layer}".removeprefix("./")


def _above(path: Path) -> str:
    return path.parent.absolute().as_posix()


def _config(folder: Path) -> dict[str, Any]:
    """config.json, checked, or nothing where there is none."""
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else {}
    if config.get("architecture", "" if config else "jump_relu") != "jump_relu":
        raise BadWeights(f"{path}: the architecture {config.get('architecture')!r} is not read, only jump_relu.")
    return config


def _model(folder: Path, config: dict[str, Any]) -> str:
    """The network's name on the hub: `gemma-v3-1b-pt` in the file is google/gemma-3-1b-pt."""
    said = str(config.get("model_name") or "")
    found = REPOSITORY.search(folder.absolute().as_posix())
    if not said and found:
        said = f"gemma-3-{found[1]}-{found[2]}"
    if re.fullmatch(r"(google/)?gemma-(v?)3-[\w-]+", said):
        said = "google/" + said.removeprefix("google/").replace("-v3-", "-3-")
    return said.removesuffix("-pt") if said.endswith("270m-pt") else said


def _check_skip(config: dict[str, Any], file: TensorFile) -> None:
    says = config.get("affine_connection")
    if isinstance(says, bool) and says != (SKIP in file.shapes):
        found = "is there" if SKIP in file.shapes else "is missing"
        raise BadWeights(f"{file.path}: {CONFIG} says affine_connection={says}, but {SKIP} {found}.")


def _one(root: Path, path: Path) -> Entry:
    config = _config(path.parent)
    if config:
        read = config.get("hf_hook_point_in")
        write = config.get("hf_hook_point_out") or read
        if not isinstance(read, str) or not isinstance(write, str):
            raise BadWeights(f"{path.parent / CONFIG} does not say where it belongs: hf_hook_point_in is missing.")
    else:
        found = FOLDER.search(_above(path))
        assert found is not None
        read, write = (f"model.layers.{found[2]}.{hook}" for hook in HOOKS[found[1]])
    file = open_tensors(path)
    _check_skip(config, file)
    address = path.parent.relative_to(root).as_posix()
    return entry(NAME, file, address, (read, write), NAMES, _model(path.parent, config))


# -- cross-layer transcoders -------------------------------------------------------------------------------------------


def _clt(root: Path, folder: Path) -> Iterator[Entry]:
    if "clt" not in folder.absolute().parts:
        raise BadWeights(
            f"{folder} holds layers of a dictionary over many layers. Of Gemma Scope's, cross-layer transcoders are "
            "read, in a folder named clt; crosscoders are not."
        )
    config = _config(folder)
    _check_hooks(folder, config)
    n_layers = len(list(folder.glob(LAYER.format("*"))))
    group, model = folder.relative_to(root).as_posix(), _model(folder, config)
    for i in range(n_layers):
        file = open_tensors(folder / LAYER.format(i))
        _check_skip(config, file)
        d, n = file.matrix("w_enc")
        wanted: dict[str, tuple[int, ...]] = {
            "w_enc": (d, n), "w_dec": (n, n_layers, d), "b_enc": (n,), "b_dec": (d,), "threshold": (n,),
        } | ({SKIP: (d, d)} if SKIP in file.shapes else {})  # fmt: skip
        file.expect(wanted)
        writes = tuple(f"model.layers.{j}.{AFTER_MLP}" for j in range(i, n_layers))
        yield Entry(
            NAME, _address(root, folder, i), "clt", f"model.layers.{i}.{BEFORE_MLP}", writes, d, d, n,
            THRESHOLD, partial(_load_clt, file, i), partial(file.read, "b_dec"), group=group, model=model,
        )  # fmt: skip


def _check_hooks(folder: Path, config: dict[str, Any]) -> None:
    """Cross-layer transcoders read the norm before each MLP and write the norm behind it. Raises BadWeights."""
    for key, known in (("hf_hook_point_in", BEFORE_MLP), ("hf_hook_point_out", AFTER_MLP)):
        said = config.get(key)
        each = said if isinstance(said, list) else [] if said is None else [said]
        if not all(isinstance(hook, str) and hook.endswith(known) for hook in each):
            raise BadWeights(f"{folder / CONFIG} says {key}={said!r}; only {known} of each layer is read.")


def _load_clt(file: TensorFile, i: int) -> dict[str, Tensor]:
    w_dec = file.read("w_dec")
    before, own = (float(part.abs().amax()) if part.numel() else 0.0 for part in (w_dec[:, :i], w_dec[:, i:]))
    if before > EARLIER * own:
        raise BadWeights(
            f"{file.path}: latents of layer {i} write in layers before it (weights up to {before:.2g}, {own:.2g} in "
            "its own and later ones), which a network that runs forward cannot take."
        )
    out = {"W_enc": file.read("w_enc").T.contiguous(), "b_enc": file.read("b_enc")}
    out["W_dec"] = w_dec[:, i:].flatten(1).contiguous()
    out["sparsity.theta"] = at_least_zero(file.read("threshold"))
    if SKIP in file.shapes:
        out["W_skip"] = torch.zeros(len(out["W_enc"][0]), out["W_dec"].shape[1])
        out["W_skip"][:, : len(out["W_skip"])] = file.read(SKIP)
    return out
