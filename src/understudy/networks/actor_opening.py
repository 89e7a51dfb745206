"""Policies from our folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from understudy.core.records.errors import BadWeights, UnderstudyError
from understudy.networks.actor import MLP, Actor

MODEL_TYPE = "understudy-policy"
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "leakyrelu": nn.LeakyReLU,
}  # fmt: skip
Module = TypeVar("Module", bound=nn.Module)


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
    module = MLP(
        config["n_inputs"], config["hidden"], config["n_actions"], activation_named(config["activation"], name)
    )
    log_std = state.pop("log_std", None)
    return Actor(filled(module, state, name), name, config["environment"], log_std)


def activation_named(name: str, spec: str) -> type[nn.Module]:
    """A class of activations by its name in any case. Raises UnderstudyError."""
    if name.lower() not in ACTIVATIONS:
        raise UnderstudyError(f"{spec}: the activation {name!r} is none of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name.lower()]


def filled(module: Module, state: Mapping[str, Tensor], spec: str) -> Module:
    """The module with these weights. Raises BadWeights for those that are not finite or do not fit."""
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise BadWeights(f"{spec}: {bad[0]} holds values that are not finite.")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise BadWeights(f"{spec}: the weights do not fit the layers: {str(error).splitlines()[-1].strip()}") from None
    return module
