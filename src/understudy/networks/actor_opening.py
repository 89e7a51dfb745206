"""Policies from their files: our folders, and the zips of stable-baselines3. No pickle is run."""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.records.errors import BadInput, BadWeights, UnderstudyError, UnknownName
from understudy.networks.actor import MLP, Actor

MODEL_TYPE = "understudy-policy"
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "leakyrelu": nn.LeakyReLU,
}  # fmt: skip
LARGEST = 1 << 30
"""Bytes of a zip's member when unpacked; a policy of vectors is a thousand times smaller."""
_LAYER = re.compile(r"mlp_extractor\.policy_net\.(\d+)\.weight")


def is_actor(folder: Path) -> bool:
    """Whether a folder holds one of our policies."""
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == MODEL_TYPE


def open_actor(folder: Path, name: str) -> Actor:
    """The policy in a folder: config.json says what it is, model.safetensors holds its weights. Raises BadWeights."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    try:
        state = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise BadWeights(f"{name}: the weights in {folder} cannot be read ({error}).") from None
    module = MLP(config["n_inputs"], config["hidden"], config["n_actions"], _activation(config["activation"], name))
    log_std = state.pop("log_std", None)
    return Actor(_filled(module, state, name), name, config["environment"], log_std)


def open_sb3(spec: str, rest: str) -> Actor:
    """`FILE.zip@ENVIRONMENT`: what PPO or A2C of stable-baselines3 saved, with a policy of vectors (MlpPolicy).

    Weights are read with `weights_only=True` and the settings as JSON; the pickles among them stay shut. Observations
    that were normalised outside the policy (VecNormalize) are not in the file: wrap the environment. Raises BadWeights
    for a file that is cut short or no such zip, BadInput for another algorithm or network.
    """
    file, _, environment = rest.rpartition("@")
    if not file:
        raise UnknownName(f"{spec}: write sb3:FILE.zip@ENVIRONMENT, e.g. sb3:ppo.zip@LunarLander-v3.")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UnknownName(f"{spec}: there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            state, settings = _weights(archive), json.loads(_member(archive, "data"))
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise BadWeights(f"{spec}: {path} is no zip of stable-baselines3, or was cut short ({error}).") from None
    except Exception as error:  # torch raises pickle's own errors for what weights_only refuses
        if type(error).__name__ != "UnpicklingError":
            raise
        raise BadWeights(f"{spec}: policy.pth in {path} holds more than tensors, and is refused.") from None
    return _from_sb3(spec, environment, state, settings)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} would unpack to {archive.getinfo(name).file_size:,} bytes")
    return archive.read(name)


def _weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    with warnings.catch_warnings(action="ignore"):  # about the pickle's protocol; what is not tensors is refused anyway
        state = torch.load(io.BytesIO(_member(archive, "policy.pth")), weights_only=True, map_location="cpu")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError("policy.pth is no table of tensors")
    return dict(state)


def _from_sb3(spec: str, environment: str, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Actor:
    layers = sorted(int(m[1]) for key in state if (m := _LAYER.fullmatch(key)))
    known = ("mlp_extractor.", "action_net.", "value_net.", "log_std")
    other = sorted(k for k in state if not k.startswith(known))
    if "action_net.weight" not in state or not layers or other:
        found = f"it holds {other[0]}" if other else "it has no mlp_extractor.policy_net and action_net"
        raise BadInput(
            f"{spec}: {found}. PPO and A2C with an MlpPolicy are read; wrap another policy with AnyModule or Actor."
        )
    kwargs = settings.get("policy_kwargs") or {}
    if kwargs.get("use_sde") or settings.get("use_sde") or kwargs.get("squash_output"):
        raise BadInput(f"{spec}: actions that depend on a state's noise (gSDE) or are squashed are not read.")
    named = re.search(r"activation\.(\w+)'", str(kwargs.get("activation_fn", "activation.Tanh'")))
    weights = [state[f"mlp_extractor.policy_net.{i}.weight"] for i in layers]
    n_actions = len(state["action_net.weight"])
    kind = _activation(named[1] if named else "", spec)
    module = MLP(weights[0].shape[1], [len(w) for w in weights], n_actions, kind)
    ours = {f"layers.{i}.0.{part}": state[f"mlp_extractor.policy_net.{at}.{part}"]
            for i, at in enumerate(layers) for part in ("weight", "bias")}  # fmt: skip
    ours |= {f"head.{part}": state[f"action_net.{part}"] for part in ("weight", "bias")}
    return Actor(_filled(module, ours, spec), spec, environment, state.get("log_std"))


def _activation(name: str, spec: str) -> type[nn.Module]:
    if name.lower() not in ACTIVATIONS:
        raise UnderstudyError(f"{spec}: the activation {name!r} is none of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name.lower()]


def _filled(module: MLP, state: Mapping[str, Tensor], spec: str) -> MLP:
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise BadWeights(f"{spec}: {bad[0]} holds values that are not finite.")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise BadWeights(f"{spec}: the weights do not fit the layers: {str(error).splitlines()[-1].strip()}") from None
    return module
