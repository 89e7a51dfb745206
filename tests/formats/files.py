"""Files in the formats of others, written by hand from their documented layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, N, K = 12, 40, 5


def random(*shape: int, seed: int = 0, scale: float = 0.5) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(d: int = D, n: int = N, d_out: int | None = None) -> dict[str, Tensor]:
    """Encoder [d, n] and decoder [n, d_out] as SAELens and Gemma Scope lay them out."""
    d_out = d_out or d
    return {
        "W_enc": random(d, n, seed=1), "W_dec": random(n, d_out, seed=2), "b_enc": random(n, seed=3),
        "b_dec": random(d_out, seed=4),
    }  # fmt: skip


def saelens(
    folder: Path, tensors: dict[str, Tensor] | None = None, hook: str = "blocks.1.hook_mlp_out", **cfg: Any
) -> Path:
    tensors = weights() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    d, n = tensors["W_enc"].shape
    metadata = {"sae_lens_version": "6.1.0", "model_name": "some-model", "hook_name": hook, **cfg.pop("metadata", {})}
    plain = {"architecture": "standard", "d_in": d, "d_sae": n, "dtype": "float32", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(plain | {"apply_b_dec_to_input": True, "metadata": metadata} | cfg))
    return folder


def sparsify(root: Path, hookpoint: str = "layers.1.mlp", d: int = D, n: int = N, **cfg: Any) -> Path:
    folder = root / hookpoint
    folder.mkdir(parents=True, exist_ok=True)
    w = weights(d, n)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    if cfg.get("skip_connection"):
        tensors["W_skip"] = random(d, d, seed=5)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae.safetensors")
    plain = {"activation": "topk", "expansion_factor": 1, "num_latents": n, "k": K, "d_in": d, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(plain | cfg))
    (root / "config.json").write_text(json.dumps({"model": "some-model"}))
    return folder


def gemma_scope(root: Path, kind: str, layer: int, l0: int = 70, tensors: dict[str, Tensor] | None = None) -> Path:
    folder = root / f"gemma-scope-2b-pt-{kind}" / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (tensors or weights()) | {
        "threshold": random(N, seed=6).abs() if tensors is None else tensors["threshold"]
    }
    np.savez(folder / "params.npz", **{k: v.numpy() for k, v in arrays.items()})
    return folder / "params.npz"


def gemma_scope_2(root: Path, name: str, read: str, write: str | None = None, skip: bool = False) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    w = weights()
    tensors = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    tensors |= {"threshold": random(N, seed=6).abs()} | (
        {"affine_skip_connection": random(D, D, seed=5)} if skip else {}
    )
    save_file(tensors, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": read}
    config |= {"affine_connection": skip, "width": N, "l0": 10}
    (folder / "config.json").write_text(json.dumps(config | ({"hf_hook_point_out": write} if write else {})))
    return folder


def gemma_scope_2_clt(
    root: Path, n_layers: int = 3, d: int = D, n: int = N, skip: bool = False, name: str = "clt/width_262k_l0_medium"
) -> Path:
    folder = root / "gemma-scope-2-1b-pt" / (name + ("_affine" if skip else ""))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_layers):
        tensors = {
            "w_enc": random(d, n, seed=10 * i), "b_enc": random(n, seed=10 * i + 1),
            "w_dec": random(n, n_layers, d, seed=10 * i + 2), "b_dec": random(d, seed=10 * i + 3),
            "threshold": random(n, seed=10 * i + 4).abs(),
        }  # fmt: skip
        tensors["w_dec"][:, :i] = 0
        tensors |= {"affine_skip_connection": random(d, d, seed=10 * i + 5)} if skip else {}
        save_file(tensors, folder / f"params_layer_{i}.safetensors")
    return folder


def circuit_tracer(root: Path, n_layers: int, d: int = D, n: int = N, **config: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    plain = {
        "model_name": "some-model", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out", "scan": "s",
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(plain | config))
    for i in range(n_layers):
        w = weights(d, n)
        tensors = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
        save_file(tensors, root / f"layer_{i}.safetensors")
    return root
