"""circuit-tracer folders: config.yaml, and a transcoder for each layer or one cross-layer transcoder (CLT).

layer_{i}.safetensors     W_enc [n, d], W_dec [n, d], b_enc, b_dec [, activation_function.threshold][, W_skip][, k]
W_enc_{i}.safetensors     W_enc_{i} [n, d], b_enc_{i}, b_dec_{i} [, threshold_{i}]
W_dec_{i}.safetensors     W_dec_{i} [n, L - i, d]: what layer i's latents write in layers i to L - 1

A latent is on above its threshold and no ReLU is applied: below 0 it may be negative, here as there.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from understudy.core.dictionary import DictionarySpec
from understudy.core.records.errors import BadInput, BadWeights
from understudy.core.weights import save_tensors
from understudy.formats._entry import THRESHOLD, Entry, Wanted, everything, topk
from understudy.formats._files import TensorFile, open_tensors, read_yaml

NAME = "circuit-tracer"
CONFIG = "config.yaml"
THETA = ("activation_function.threshold", "threshold")


def find(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    """Every layer of the folders at or below `root` that hold a config.yaml of this kind. Raises BadWeights."""
    for path in sorted(root.rglob(CONFIG)):
        config = read_yaml(path)
        if "feature_input_hook" in config:
            yield from _entries(root, path.parent, config, wanted)


def _entries(root: Path, folder: Path, config: dict[str, Any], wanted: Wanted) -> Iterator[Entry]:
    address = folder.relative_to(root).as_posix()
    read, write = config["feature_input_hook"], config.get("feature_output_hook")
    if not isinstance(read, str) or not isinstance(write, str):
        raise BadWeights(f"{folder / CONFIG} does not name feature_input_hook and feature_output_hook.")
    hooks = (f"blocks.{{}}.{read}", f"blocks.{{}}.{write}")
    model = str(config.get("model_name", ""))
    if config.get("model_kind") == "cross_layer_transcoder":
        # A layer alone is a part of a sum, so all are opened or none.
        if wanted(f"{address}/0".removeprefix("./")):
            yield from _clt(folder, address, hooks, model)
        return
    for layer, path in _layers(folder, config):
        if wanted(name := f"{address}/layer_{layer}".removeprefix("./")):
            yield _transcoder(path, name, layer, hooks, model)


def _layers(folder: Path, config: dict[str, Any]) -> Iterator[tuple[int, Path]]:
    """Layers that are there; those named by a hub address or a path outside the folder are not looked for."""
    named = config.get("transcoders") or []
    for layer, text in enumerate(named):
        path = folder / Path(str(text)).name
        if path.suffix == ".safetensors" and path.is_file():
            yield layer, path
    if not named:
        found = [(int(m[1]), p) for p in folder.glob("layer_*.safetensors") if (m := re.search(r"_(\d+)$", p.stem))]
        yield from sorted(found)


def _transcoder(path: Path, address: str, layer: int, hooks: tuple[str, str], model: str) -> Entry:
    file = open_tensors(path)
    n, d = file.matrix("W_enc")
    wanted: dict[str, tuple[int, ...]] = {"W_enc": (n, d), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    theta = next((name for name in THETA if name in file.shapes), None)
    wanted |= ({} if theta is None else {theta: (n,)}) | ({"W_skip": (d, d)} if "W_skip" in file.shapes else {})
    file.expect(wanted, optional=("k",))
    rule = topk(path, file.read("k").item(), n) if "k" in file.shapes else THRESHOLD
    return Entry(
        NAME, address, "transcoder", hooks[0].format(layer), (hooks[1].format(layer),), d, d, n, rule,
        partial(_load, file, theta), model=model,
    )  # fmt: skip


def _load(file: TensorFile, theta: str | None) -> dict[str, Tensor]:
    out = {name: file.read(name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    out["sparsity.theta"] = torch.zeros_like(out["b_enc"]) if theta is None else file.read(theta)
    if "W_skip" in file.shapes:
        out["W_skip"] = file.read("W_skip").T.contiguous()
    return out


def _clt(folder: Path, address: str, hooks: tuple[str, str], model: str) -> Iterator[Entry]:
    n_layers = len(list(folder.glob("W_enc_*.safetensors")))
    if n_layers == 0:
        raise BadWeights(f"{folder} is a cross-layer transcoder's folder without any W_enc_*.safetensors.")
    for i in range(n_layers):
        enc, dec = (open_tensors(folder / f"{part}_{i}.safetensors") for part in ("W_enc", "W_dec"))
        n, d = enc.matrix(f"W_enc_{i}")
        enc.expect({f"W_enc_{i}": (n, d), f"b_enc_{i}": (n,), f"b_dec_{i}": (d,)}, optional=(f"threshold_{i}",))
        dec.expect({f"W_dec_{i}": (n, n_layers - i, d)})
        if enc.shapes.get(f"threshold_{i}", (n,)) != (n,):
            raise BadWeights(
                f"{enc.path}: threshold_{i} is {list(enc.shapes[f'threshold_{i}'])} where [{n}] is needed."
            )
        writes = tuple(hooks[1].format(j) for j in range(i, n_layers))
        yield Entry(
            NAME, f"{address}/{i}".removeprefix("./"), "clt", hooks[0].format(i), writes, d, d, n, THRESHOLD,
            partial(_load_clt, enc, dec, i), partial(enc.read, f"b_dec_{i}"), group=address, model=model,
        )  # fmt: skip


def _load_clt(enc: TensorFile, dec: TensorFile, i: int) -> dict[str, Tensor]:
    out = {"W_enc": enc.read(f"W_enc_{i}"), "b_enc": enc.read(f"b_enc_{i}")}
    out["W_dec"] = dec.read(f"W_dec_{i}").flatten(1)
    has = f"threshold_{i}" in enc.shapes
    out["sparsity.theta"] = enc.read(f"threshold_{i}") if has else torch.zeros_like(out["b_enc"])
    return out


# -- writing ----------------------------------------------------------------------------------------------------------


def write_config(out: Path, kind: str, hooks: tuple[str, str], n_layers: int, model: str) -> Path:
    """config.yaml. kind: transcoder_set or cross_layer_transcoder; hooks: names within a block."""
    config: dict[str, Any] = {
        "model_name": model, "model_kind": kind, "feature_input_hook": hooks[0], "feature_output_hook": hooks[1],
        "scan": model,
    }  # fmt: skip
    if kind == "transcoder_set":
        config["transcoders"] = [f"layer_{i}.safetensors" for i in range(n_layers)]
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    return out / CONFIG


def write_transcoder(out: Path, layer: int, spec: DictionarySpec) -> Path:
    """layer_{i}.safetensors. Raises BadInput for what circuit-tracer cannot hold."""
    check_rule(spec)
    a = spec.arrays
    if a["W_enc"].shape[1] != a["W_dec"].shape[1]:
        raise BadInput(f"circuit-tracer's transcoders have one width; {spec.reads[0]} and {spec.writes[0]} differ.")
    tensors = {name: a[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | {THETA[0]: a["sparsity.theta"]}
    if "W_skip" in a:
        tensors["W_skip"] = a["W_skip"].T
    save_tensors(out / f"layer_{layer}.safetensors", tensors)
    return out / f"layer_{layer}.safetensors"


def write_clt_layer(out: Path, layer: int, spec: DictionarySpec, b_dec: Tensor) -> Sequence[Path]:
    """W_enc_{i} and W_dec_{i} of one layer. b_dec: the group's bias of the layer's own site.

    Raises BadInput for what its files do not hold: another rule than thresholds, a skip path, a bias of the layer.
    """
    check_rule(spec)
    a = spec.arrays
    if extra := sorted({"W_skip", "b_dec"} & set(a)):
        raise BadInput(
            f"circuit-tracer's files of a cross-layer transcoder have no place for {', '.join(extra)} of a layer "
            f"({spec.reads[0]}); without it another map would be written."
        )
    enc = {f"W_enc_{layer}": a["W_enc"], f"b_enc_{layer}": a["b_enc"], f"b_dec_{layer}": b_dec}
    enc[f"threshold_{layer}"] = a["sparsity.theta"]
    dec = {f"W_dec_{layer}": a["W_dec"].unflatten(1, (len(spec.writes), -1))}
    paths = [out / f"W_enc_{layer}.safetensors", out / f"W_dec_{layer}.safetensors"]
    for path, tensors in zip(paths, (enc, dec), strict=True):
        save_tensors(path, tensors)
    return paths


def check_rule(spec: DictionarySpec) -> None:
    """Raises BadInput unless the dictionary has thresholds."""
    rule = spec.settings["sparsity"]["name"]
    if rule != "threshold":
        raise BadInput(
            f"circuit-tracer needs a threshold for each latent; {spec.writes[0]} has the rule {rule}. Convert with "
            "dictionary.thresholded(acts) first."
        )
