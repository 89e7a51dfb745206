"""Gemma Scope, first release (Gemma 2): params.npz. The second, for Gemma 3, is `gemma_scope_2`.

JumpReLU, x as it is: pre = x W_enc + b_enc, f = relu(pre) (pre > threshold), f W_dec + b_dec. The files hold arrays
only: which site they belong to is said by the repository's and the folder's name.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from understudy.core.records.errors import BadWeights
from understudy.formats._entry import THRESHOLD, Entry, Wanted, at_least_zero, everything, layer_of, subtracting
from understudy.formats._files import TensorFile, open_tensors

NAME = "gemma-scope"
FIRST = re.compile(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)(?![\w-])")
HOOKS = {
    "res": ("blocks.{}.hook_resid_post",) * 2,
    "mlp": ("blocks.{}.hook_mlp_out",) * 2,
    "att": ("blocks.{}.attn.hook_z",) * 2,
    "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
}
"""Transcoders read the normalised MLP input before the norm's gain."""
NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"


def find(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    """Every dictionary at or below `root`. Raises BadWeights."""
    for path in sorted(root.rglob("params.npz")):
        if wanted(path.parent.relative_to(root).as_posix()):
            yield _first(root, path)


def _first(root: Path, path: Path) -> Entry:
    address = path.parent.relative_to(root).as_posix()
    found = FIRST.search(path.absolute().as_posix())
    if found is None:
        raise BadWeights(
            f"{path} holds arrays but not the site they belong to; Gemma Scope says that by its repository's name. "
            "Keep it as a folder above, e.g. gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59/params.npz."
        )
    if "embedding" in path.parent.as_posix():
        raise BadWeights(f"{path}: Gemma Scope's dictionaries of the token embedding are not read.")
    layer = layer_of(path.parent.as_posix(), r"layer_(\d+)", str(path))
    size, tuned, kind = found.groups()
    hooks = HOOKS[kind][0].format(layer), HOOKS[kind][1].format(layer)
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    return entry(NAME, open_tensors(path), address, hooks, NAMES, model)


def entry(
    form: str, file: TensorFile, address: str, hooks: tuple[str, str], names: Mapping[str, str], model: str
) -> Entry:
    """The SAE or transcoder of one file. hooks: read and written; names: ours -> the tensor's name in the file."""
    d_in, n_latents = file.matrix(names["W_enc"])
    d_out = file.matrix(names["W_dec"])[1]
    skips = SKIP in file.shapes
    shapes = {"W_enc": (d_in, n_latents), "W_dec": (n_latents, d_out), "b_enc": (n_latents,), "b_dec": (d_out,)}
    wanted: dict[str, tuple[int, ...]] = {names[k]: v for k, v in shapes.items()} | {names["threshold"]: (n_latents,)}
    file.expect(wanted | ({SKIP: (d_in, d_out)} if skips else {}))
    is_sae = hooks[0] == hooks[1]
    if is_sae and (d_in != d_out or skips):
        raise BadWeights(f"{file.path}: an SAE writes what it reads, but W_enc has {d_in} rows, W_dec {d_out} columns.")
    return Entry(
        form, address, "sae" if is_sae else "transcoder", hooks[0], (hooks[1],), d_in, d_out, n_latents, THRESHOLD,
        partial(_load, file, names, is_sae), model=model,
    )  # fmt: skip


def _load(file: TensorFile, names: Mapping[str, str], is_sae: bool) -> dict[str, Tensor]:
    out = {k: file.read(names[k]) for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    out["W_enc"] = out["W_enc"].T.contiguous()
    out["sparsity.theta"] = at_least_zero(file.read(names["threshold"]))
    if SKIP in file.shapes:
        out["W_skip"] = file.read(SKIP)
    return subtracting(out) if is_sae else out
