"""SAELens folders: cfg.json and sae_weights.safetensors, version 6 and before.

Row-vector arithmetic of theirs, x [d]: h = x [- b_dec], pre = h W_enc + b_enc, f W_dec + b_dec; W_enc is [d, n].
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.core.dictionary import DictionarySpec
from understudy.core.records.errors import BadInput, BadWeights
from understudy.core.weights import save_tensors
from understudy.formats._entry import THRESHOLD, Entry, Wanted, at_least_zero, centred, everything, subtracting, topk
from understudy.formats._files import TensorFile, open_tensors, read_json
from understudy.formats.hooks import module_path

NAME = "saelens"
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAES = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
VERSION = "6.0.0"
"""Written as sae_lens_version: without one of at least 6.0.0 a file is read as an old one."""
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
KEPT = ("dataset_path", "context_size", "prepend_bos", "hook_name", "neuronpedia_id")
CENTRED_HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")


def find(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    """Every dictionary at or below `root`. Raises BadWeights for what cannot be expressed, by name."""
    for path in sorted(root.rglob(WEIGHTS)):
        if (path.parent / CFG).is_file() and wanted(path.parent.relative_to(root).as_posix()):
            yield _entry(root, path.parent)


def _entry(root: Path, folder: Path) -> Entry:
    cfg, about = _settings(folder)
    path = folder / CFG
    architecture = cfg.get("architecture", "standard")
    if architecture not in (*SAES, *TRANSCODERS):
        raise BadWeights(
            f"{path}: dictionaries of the architecture {architecture!r} are not read; known are "
            f"{', '.join((*SAES, *TRANSCODERS))}."
        )
    file = open_tensors(folder / WEIGHTS)
    _check_head(path, about)
    is_transcoder = architecture in TRANSCODERS
    d_in, n_latents = file.matrix("W_enc")
    d_out = file.matrix("W_dec")[1]
    _check_tensors(file, architecture, d_in, n_latents, d_out)
    for key, found in (("d_in", d_in), ("d_sae", n_latents), ("d_out", d_out if is_transcoder else None)):
        if found is not None and cfg.get(key, found) != found:
            raise BadWeights(f"{path} says {key}={cfg[key]}, but the weights beside it have {found}.")
    read, write = _hooks(path, about, is_transcoder)
    kwargs = about.get("model_from_pretrained_kwargs") or {}
    is_centred = bool(kwargs.get("center_writing_weights")) and not is_transcoder and read.endswith(CENTRED_HOOKS)
    scale = _input_scale(folder, cfg)
    return Entry(
        NAME, folder.relative_to(root).as_posix(), "transcoder" if is_transcoder else "sae", read, (write,), d_in,
        d_out, n_latents, topk(path, cfg.get("k"), n_latents) if architecture == "topk" else THRESHOLD,
        partial(_load, file, architecture, cfg, scale, is_centred), model=str(about.get("model_name") or ""),
        is_centred=is_centred,
        about={k: about[k] for k in KEPT if about.get(k) is not None},
    )  # fmt: skip


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """cfg.json in the form of version 6, and its metadata; before version 6 all keys lay side by side."""
    cfg = read_json(folder / CFG)
    metadata = cfg.get("metadata")
    if isinstance(metadata, dict) and "hook_name" in metadata:
        return cfg, metadata
    cfg = {RENAMED.get(key, key): value for key, value in cfg.items()}
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if cfg.get("activation_fn") == "topk" and kwargs.get("k") is not None:
        cfg |= {"architecture": "topk", "k": kwargs["k"]}
    normalise = cfg.get("normalize_activations")
    if isinstance(normalise, bool) or normalise is None:
        cfg["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    return cfg, cfg | (metadata if isinstance(metadata, dict) else {})


def _check_head(path: Path, about: dict[str, Any]) -> None:
    if about.get("hook_head_index") is not None:
        raise BadWeights(
            f"{path} belongs to head {about['hook_head_index']} of {about.get('hook_name')}: dictionaries of single "
            "heads are not read."
        )


def _check_tensors(file: TensorFile, architecture: str, d_in: int, n: int, d_out: int) -> None:
    wanted: dict[str, tuple[int, ...]] = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_dec": (d_out,)}
    if architecture == "gated":
        wanted |= {"b_gate": (n,), "b_mag": (n,), "r_mag": (n,)}
    else:
        wanted["b_enc"] = (n,)
    if "jumprelu" in architecture:
        wanted["threshold"] = (n,)
    if "batchtopk" in architecture:
        wanted["topk_threshold"] = ()
    if "skip" in architecture:
        wanted["W_skip"] = (d_out, d_in)
    if architecture in SAES and d_in != d_out:
        raise BadWeights(
            f"{file.path}: an SAE writes what it reads, but W_enc has {d_in} rows and W_dec {d_out} columns."
        )
    file.expect(wanted, optional=("scaling_factor",))


def _hooks(path: Path, about: dict[str, Any], is_transcoder: bool) -> tuple[str, str]:
    """The hooks read and written; a module path (hf_hook_name), where given, says more than a TransformerLens name."""
    read = about.get("hf_hook_name") or about.get("hook_name")
    write = (about.get("hf_hook_name_out") or about.get("hook_name_out")) if is_transcoder else read
    if not isinstance(read, str) or not isinstance(write, str):
        key = "hook_name_out" if isinstance(read, str) else "hook_name"
        raise BadWeights(
            f"{path} does not say where the dictionary belongs: metadata.{key} is missing. Add it, e.g. "
            '"blocks.3.hook_mlp_out" or a module path such as "model.layers.3.mlp:out".'
        )
    return read, write


def _input_scale(folder: Path, cfg: dict[str, Any]) -> float:
    """The one factor that inputs are multiplied by. Raises BadWeights where it is not known or differs by place."""
    kind = cfg.get("normalize_activations") or "none"
    if kind == "none":
        return 1.0
    if kind != "expected_average_only_in":
        raise BadWeights(
            f"{folder / CFG}: normalize_activations={kind!r} changes each place by its own norm or mixes coordinates "
            "at run time; such dictionaries are not read. Fold it into the weights where that can be done."
        )
    path = folder / "activation_scaler.json"
    factor = read_json(path).get("scaling_factor") if path.is_file() else None
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise BadWeights(
            f"{folder / CFG}: the dictionary was trained on activations times one factor (expected_average_only_in), "
            f'which the file does not hold. Put it beside as activation_scaler.json: {{"scaling_factor": 0.123}}, or '
            'fold it into the weights and say "none".'
        )
    return float(factor)


def _load(
    file: TensorFile, architecture: str, cfg: dict[str, Any], scale: float, is_centred: bool
) -> dict[str, Tensor]:
    out = {"W_enc": file.read("W_enc").T.contiguous(), "W_dec": file.read("W_dec"), "b_dec": file.read("b_dec")}
    if "scaling_factor" in file.shapes and not bool(
        torch.allclose(s := file.read("scaling_factor"), torch.ones_like(s))
    ):
        raise BadWeights(f"{file.path}: scaling_factor is not 1; fold it into W_dec first.")
    if architecture == "gated":
        gain = file.read("r_mag").exp()
        out["W_enc"], out["b_enc"] = out["W_enc"] * gain[:, None], file.read("b_mag")
        # pi + b_gate > 0 as a bound on the magnitude's own pre-activation pi e^r + b_mag: both share their directions.
        out["sparsity.theta"] = at_least_zero(out["b_enc"] - gain * file.read("b_gate"))
    else:
        out["b_enc"] = file.read("b_enc")
    if "jumprelu" in architecture:
        out["sparsity.theta"] = at_least_zero(file.read("threshold"))
    if architecture in ("standard", "transcoder", "skip_transcoder"):
        out["sparsity.theta"] = torch.zeros_like(out["b_enc"])
    if "skip" in architecture:
        out["W_skip"] = file.read("W_skip").T.contiguous()
    if cfg.get("rescale_acts_by_decoder_norm"):
        norm = out["W_dec"].norm(dim=1)
        out["W_enc"], out["b_enc"] = out["W_enc"] * norm[:, None], out["b_enc"] * norm
        out["W_dec"] = out["W_dec"] / norm.clamp(min=1e-12)[:, None]
    if "batchtopk" in architecture:
        out["sparsity.theta"] = at_least_zero(file.read("topk_threshold")).expand(len(out["b_enc"])).clone()
    if scale != 1:
        out["W_enc"] = out["W_enc"] * scale
        if architecture in SAES:
            out["W_dec"], out["b_dec"] = out["W_dec"] / scale, out["b_dec"] / scale
    if architecture in SAES and not cfg.get("apply_b_dec_to_input", True):
        subtracting(out)
    return centred(out) if is_centred else out


# -- writing ----------------------------------------------------------------------------------------------------------


def write(out: Path, spec: DictionarySpec, hooks: tuple[str, str], about: dict[str, Any]) -> list[Path]:
    """One folder for one SAE or transcoder whose normalisation is folded. Raises BadInput for other kinds.

    hooks: the names of the read and the written site. about: model_name and what else goes to the metadata.
    """
    rule = spec.settings["sparsity"]
    _check_writable(spec, rule)
    a = spec.arrays
    tensors = {"W_enc": a["W_enc"].T, "W_dec": a["W_dec"], "b_enc": a["b_enc"], "b_dec": a["b_dec"]}
    is_transcoder, skips = spec.kind == "transcoder", "W_skip" in a
    if rule["name"] == "threshold":
        tensors["threshold"] = a["sparsity.theta"]
    if skips:
        tensors["W_skip"] = a["W_skip"].T
    kind = ("jumprelu_skip_transcoder" if skips else "jumprelu_transcoder") if is_transcoder else "jumprelu"
    cfg: dict[str, Any] = {
        "architecture": "topk" if rule["name"] == "topk" else kind,
        "d_in": a["W_enc"].shape[1], "d_sae": a["W_enc"].shape[0], "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not is_transcoder, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": VERSION, "hook_name": hooks[0], **about},
    }  # fmt: skip
    cfg["metadata"]["hf_hook_name"] = module_path(spec.reads[0])
    if is_transcoder:
        cfg["d_out"] = a["W_dec"].shape[1]
        cfg["metadata"] |= {"hook_name_out": hooks[1], "hf_hook_name_out": module_path(spec.writes[0])}
    if rule["name"] == "topk":
        cfg |= {"k": rule["k"], "rescale_acts_by_decoder_norm": False}
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / WEIGHTS, tensors)
    (out / CFG).write_text(json.dumps(cfg, indent=1) + "\n")
    return [out / CFG, out / WEIGHTS]


def _check_writable(spec: DictionarySpec, rule: dict[str, Any]) -> None:
    if spec.kind not in ("sae", "transcoder") or len(spec.reads) != 1 or len(spec.writes) != 1:
        raise BadInput(
            f"SAELens has no {spec.kind} that writes {len(spec.writes)} sites; it holds SAEs and transcoders of one "
            "site each. A cross-layer transcoder goes to --format circuit-tracer."
        )
    if rule["name"] not in ("threshold", *(("topk",) if spec.kind == "sae" else ())):
        raise BadInput(
            f"SAELens has no {spec.kind} with the rule {rule['name']}; it has thresholds, and TopK for SAEs. Convert "
            "with dictionary.thresholded(acts) first."
        )
    if spec.kind == "sae" and "W_skip" in spec.arrays:
        raise BadInput("SAELens has no SAE with a skip path (here: one that passes the mean of centred activations).")
