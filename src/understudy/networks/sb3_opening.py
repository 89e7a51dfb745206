"""Policies from the zips of stable-baselines3. No pickle is run."""

import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.core.records.errors import BadInput, BadWeights, UnknownName
from understudy.networks.actor import MLP, Actor
from understudy.networks.actor_opening import activation_named, filled
from understudy.networks.picture_actor import ConvMLP, PictureActor

LARGEST = 1 << 30
"""Bytes of a zip's member when unpacked, and of its tensors; a policy is a hundred times smaller."""
LAYER = re.compile(r"mlp_extractor\.policy_net\.(\d{1,3})\.weight")
EYES = tuple(f"{name}.{part}" for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0") for part in ("weight", "bias"))
"""Parameters of the usual features extractor of a CnnPolicy."""


def open_sb3(spec: str, rest: str) -> Actor:
    """`FILE.zip@ENVIRONMENT`: what PPO or A2C of stable-baselines3 saved, with an MlpPolicy or a CnnPolicy.

    ENVIRONMENT is an id of gymnasium, or MODULE:ID where a module, of the current folder too, registers it. Weights are
    read with `weights_only=True` and the settings as JSON; the pickles among them stay shut. Observations
    that were normalised or stacked outside the policy (VecNormalize, VecFrameStack) are not in the file: wrap the
    environment. Raises BadWeights for a file that is cut short or no such zip, BadInput for another algorithm or
    network.
    """
    file, _, environment = rest.rpartition("@")
    if not file:
        raise UnknownName(f"{spec}: write sb3:FILE.zip@ENVIRONMENT, e.g. sb3:ppo.zip@LunarLander-v3.")
    if ":" in environment and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    path = Path(file).expanduser()
    if not path.is_file():
        raise UnknownName(f"{spec}: there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            state, (settings, kwargs) = _weights(archive), _settings(archive)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise BadWeights(f"{spec}: {path} is no zip of stable-baselines3, or was cut short ({error}).") from None
    except Exception as error:  # torch raises pickle's own errors for what weights_only refuses
        if type(error).__name__ != "UnpicklingError":
            raise
        raise BadWeights(f"{spec}: policy.pth in {path} holds more than tensors, and is refused.") from None
    if kwargs.get("use_sde") or settings.get("use_sde") or kwargs.get("squash_output"):
        raise BadInput(f"{spec}: actions that depend on a state's noise (gSDE) or are squashed are not read.")
    return _opened(spec, environment, state, kwargs)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} would unpack to {archive.getinfo(name).file_size:,} bytes")
    return archive.read(name)


def _settings(archive: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was saved as JSON, and the policy's part of it."""
    settings = json.loads(_member(archive, "data"))
    kwargs = settings.get("policy_kwargs") or {} if isinstance(settings, dict) else None
    if not isinstance(kwargs, dict):
        raise ValueError("data is no table of settings")
    return settings, kwargs


def _weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    packed = io.BytesIO(_member(archive, "policy.pth"))
    with zipfile.ZipFile(packed) as inner:  # torch's file is a zip itself
        unpacked = sum(member.file_size for member in inner.infolist())
    if unpacked > LARGEST:
        raise ValueError(f"policy.pth would unpack to {unpacked:,} bytes")
    packed.seek(0)
    with warnings.catch_warnings(action="ignore"):  # about the pickle's protocol; what is not tensors is refused anyway
        state = torch.load(packed, weights_only=True, map_location="cpu")
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and _plain(v) for k, v in state.items()):
        raise ValueError("policy.pth is no table of tensors")
    claimed = {k: v.numel() * v.element_size() for k, v in state.items()}  # strides of 0 make one number a wide layer
    if sum(claimed.values()) > LARGEST:
        most = max(claimed, key=lambda k: claimed[k])
        raise ValueError(f"its tensors would take {sum(claimed.values()):,} bytes, {most} alone {claimed[most]:,}")
    return dict(state)


def _plain(value: Any) -> bool:
    """Whether it is a dense tensor with numbers behind it."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _opened(spec: str, environment: str, state: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> Actor:
    eyes = next(
        (p for p in ("pi_features_extractor.", "features_extractor.") if any(k.startswith(p) for k in state)), ""
    )
    layers = sorted(int(m[1]) for key in state if (m := LAYER.fullmatch(key)))
    _check(spec, state, eyes, layers)
    named = re.search(r"activation\.(\w+)'", str(kwargs.get("activation_fn", "activation.Tanh'")))
    kind = activation_named(named[1] if named else "", spec)
    paths = [f"{eyes}linear.0"] * bool(eyes) + [f"mlp_extractor.policy_net.{i}" for i in layers]
    theirs = {f"layers.{i}.0": path for i, path in enumerate(paths)} | {"head": "action_net"}
    theirs |= {f"convs.{i}.0": f"{eyes}cnn.{2 * i}" for i in range(3)} if eyes else {}
    ours = _taken(spec, state, theirs)
    widths, n_actions, log_std = [len(state[f"{p}.bias"]) for p in paths], len(ours["head.bias"]), state.get("log_std")
    n_inputs = ours["layers.0.0.weight"].shape[-1]
    if not eyes:
        module = filled(lambda: MLP(n_inputs, widths, n_actions, kind), ours, spec)
        return Actor(module, spec, environment, log_std)
    scale = 1 / 255 if kwargs.get("normalize_images", True) else 1.0
    channels = _channels(ours)
    module = filled(lambda: ConvMLP(channels, n_inputs, widths, n_actions, kind, scale), ours, spec)
    return _seeing(PictureActor(module, spec, environment, log_std, None, channels[0]), environment)


def _taken(spec: str, state: Mapping[str, Tensor], theirs: Mapping[str, str]) -> dict[str, Tensor]:
    """Our names and their tensors. Raises BadWeights for one that is not there, or has other axes than a layer's."""
    ours = {}
    for a, b in theirs.items():
        for part, axes in (("weight", 4 if a.startswith("convs") else 2), ("bias", 1)):
            tensor = state.get(f"{b}.{part}")
            if tensor is None or tensor.dim() != axes:
                found = "is not there" if tensor is None else f"is {list(tensor.shape)}"
                raise BadWeights(f"{spec}: {b}.{part} {found}; a layer's {part} has {axes} axes.")
            ours[f"{a}.{part}"] = tensor
    return ours


def _channels(ours: Mapping[str, Tensor]) -> list[int]:
    weights = [ours[f"convs.{i}.0.weight"] for i in range(3)]
    return [weights[0].shape[1], *(len(w) for w in weights)]


def _seeing(network: PictureActor, environment: str) -> PictureActor:
    """Raises BadInput where it cannot read what the environment shows."""
    try:
        network.module(network.example().inputs["obs"])
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise BadInput(
            f"{network.name}: the policy does not read frames as {environment} shows them ({why}). "
            "Frames that were resized outside the policy are not in its file: register an environment that does it."
        ) from None
    return network


def _check(spec: str, state: Mapping[str, Tensor], eyes: str, layers: list[int]) -> None:
    """Raises BadInput for what is no actor-critic of vectors or pictures."""
    known = ("mlp_extractor.", "action_net.", "value_net.", "log_std", *(f"{eyes}{key}" for key in EYES if eyes))
    if eyes:
        known += ("vf_features_extractor.", "features_extractor.") if eyes.startswith("pi") else ()
    other = sorted(k for k in state if not k.startswith(known))
    wanted = ["action_net.weight", *(f"{eyes}{key}" for key in EYES if eyes)]
    lacking = [k for k in wanted if k not in state] + ([] if layers or eyes else ["mlp_extractor.policy_net"])
    if lacking or other:
        found = f"it holds {other[0]}" if other else f"it has no {lacking[0]}"
        raise BadInput(
            f"{spec}: {found}. PPO and A2C are read with an MlpPolicy, or with a CnnPolicy and its usual convolutions; "
            "wrap another policy with AnyModule or Actor."
        )
