"""eai-sparsify folders: one for each hookpoint, with cfg.json and sae.safetensors.

The folder's name is the hookpoint, a module's path without the model's own prefix. An SAE reads and writes the module's
output; with `transcode` the module's input is read and its output written. After a ReLU the k largest latents are kept
(topk), or of k groups of consecutive latents the largest of each (groupmax).
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from understudy.core.dictionary import DictionarySpec
from understudy.core.records.errors import BadInput, BadWeights
from understudy.core.weights import save_tensors
from understudy.formats._entry import Entry, Wanted, everything, groupmax, topk
from understudy.formats._files import TensorFile, open_tensors, read_json

NAME = "sparsify"
CFG, WEIGHTS = "cfg.json", "sae.safetensors"
RULES = {"topk": topk, "groupmax": groupmax}


def find(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    """Every dictionary at or below `root`. Raises BadWeights."""
    for path in sorted(root.rglob(WEIGHTS)):
        if (path.parent / CFG).is_file() and wanted(path.parent.relative_to(root).as_posix()):
            yield _entry(root, path.parent)


def _entry(root: Path, folder: Path) -> Entry:
    path = folder / CFG
    cfg = read_json(path)
    activation = cfg.get("activation", "topk")
    if not isinstance(activation, str) or activation not in RULES:
        raise BadWeights(
            f"{path}: dictionaries with the activation {activation!r} are not read, only {' or '.join(RULES)}."
        )
    file = open_tensors(folder / WEIGHTS)
    n_latents, d = file.matrix("encoder.weight")
    skips = bool(cfg.get("skip_connection"))
    wanted: dict[str, tuple[int, ...]] = {
        "encoder.weight": (n_latents, d), "encoder.bias": (n_latents,), "W_dec": (n_latents, d), "b_dec": (d,),
    } | ({"W_skip": (d, d)} if skips else {})  # fmt: skip
    file.expect(wanted)
    if cfg.get("d_in", d) != d:
        raise BadWeights(f"{path} says d_in={cfg['d_in']}, but the weights beside it have {d}.")
    transcodes = bool(cfg.get("transcode"))
    if skips and not transcodes:
        raise BadWeights(f"{path}: an SAE with a skip connection is not read.")
    name = folder.parent.name if folder.name.startswith("seed") and folder.name[4:].isdecimal() else folder.name
    whole = next((p for p in (folder, *folder.parents) if (p / "config.json").is_file()), None)
    model = read_json(whole / "config.json").get("model", "") if whole is not None else ""
    return Entry(
        NAME, folder.relative_to(root).as_posix(), "transcoder" if transcodes else "sae",
        f"{name}:in" if transcodes else f"{name}:out", (f"{name}:out",), d, d, n_latents,
        RULES[activation](path, cfg.get("k"), n_latents), partial(_load, file, skips), model=str(model),
    )  # fmt: skip


def _load(file: TensorFile, skips: bool) -> dict[str, Tensor]:
    out = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    arrays = {ours: file.read(theirs) for ours, theirs in out.items()}
    return arrays | ({"W_skip": file.read("W_skip").T.contiguous()} if skips else {})


def write(out: Path, spec: DictionarySpec, hookpoint: str, about: dict[str, Any]) -> list[Path]:
    """One folder for one SAE or transcoder whose normalisation is folded. Raises BadInput for what sparsify lacks.

    hookpoint: the module's path without the model's prefix.
    """
    rule = spec.settings["sparsity"]
    if spec.kind not in ("sae", "transcoder") or len(spec.reads) != 1 or len(spec.writes) != 1:
        raise BadInput(f"sparsify has no {spec.kind} that writes {len(spec.writes)} sites.")
    if rule["name"] not in RULES:
        raise BadInput(
            f"sparsify keeps the k largest latents of each place or group; this {spec.kind} has the rule "
            f"{rule['name']}, which that cannot express. Use --format saelens."
        )
    transcodes = spec.kind == "transcoder"
    fits = spec.reads[0].module == spec.writes[0].module and spec.reads[0].port == "in" and spec.writes[0].port == "out"
    if (transcodes and not fits) or (not transcodes and spec.reads[0].port != "out"):
        raise BadInput(
            f"sparsify's dictionaries read and write one module; this one reads {spec.reads[0]} and writes "
            f"{spec.writes[0]}."
        )
    a = spec.arrays
    n_latents, d = a["W_enc"].shape
    if a["W_dec"].shape[1] != d or (not transcodes and "W_skip" in a):
        raise BadInput(f"sparsify's dictionaries have one width and no skip in SAEs; this one reads {d}.")
    tensors = {"encoder.weight": a["W_enc"], "encoder.bias": a["b_enc"], "W_dec": a["W_dec"], "b_dec": a["b_dec"]}
    if "W_skip" in a:
        tensors["W_skip"] = a["W_skip"].T
    cfg = {
        "activation": rule["name"], "expansion_factor": n_latents // d, "normalize_decoder": not transcodes,
        "num_latents": n_latents, "k": rule["k"], "multi_topk": False, "skip_connection": "W_skip" in a,
        "transcode": transcodes, "d_in": d,
    }  # fmt: skip
    folder = out / hookpoint
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, tensors)
    (folder / CFG).write_text(json.dumps(cfg, indent=1) + "\n")
    (out / "config.json").write_text(json.dumps({"model": about.get("model_name", "")}, indent=1) + "\n")
    return [folder / CFG, folder / WEIGHTS]
