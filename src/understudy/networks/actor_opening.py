"""Policies from our folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
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
    log_std, hidden = state.pop("log_std", None), config.get("hidden")
    if not isinstance(hidden, list) or 2 * (len(hidden) + 1) != len(state):
        raise BadWeights(f"{name}: config.json says hidden layers {hidden!r:.80}; there are {len(state)} tensors.")
    kind = activation_named(str(config.get("activation")), name)
    module = filled(lambda: MLP(config.get("n_inputs"), hidden, config.get("n_actions"), kind), state, name)
    return Actor(module, name, config.get("environment"), log_std)


def activation_named(name: str, spec: str) -> type[nn.Module]:
    """A class of activations by its name in any case. Raises UnderstudyError."""
    if name.lower() not in ACTIVATIONS:
        raise UnderstudyError(f"{spec}: the activation {name!r} is none of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name.lower()]


def filled(make: Callable[[], Module], state: Mapping[str, Tensor], spec: str) -> Module:
    """The module that `make` makes, with these weights. It is made without memory, so that a size which a file only
    claims costs nothing. Raises BadWeights for weights that do not fit or are not finite."""
    try:
        with torch.device("meta"):
            module = make()
    except (TypeError, RuntimeError, ValueError) as error:
        raise BadWeights(f"{spec}: its layers cannot be made: {str(error).splitlines()[0]}") from None
    for key, wanted in module.state_dict().items():
        if key in state and state[key].shape != wanted.shape:
            shapes = f"{key} is {list(state[key].shape)}, not {list(wanted.shape)}"
            raise BadWeights(f"{spec}: the weights do not fit the layers: {shapes}.")
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise BadWeights(f"{spec}: {bad[0]} holds values that are not finite.")
    try:
        module.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in state.items()}, assign=True)
    except RuntimeError as error:
        raise BadWeights(f"{spec}: the weights do not fit the layers: {str(error).splitlines()[-1].strip()}") from None
    return module
