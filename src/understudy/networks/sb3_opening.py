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
"""Bytes of a zip's member when unpacked; a policy is a hundred times smaller."""
LAYER = re.compile(r"mlp_extractor\.policy_net\.(\d+)\.weight")
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
            state, settings = _weights(archive), json.loads(_member(archive, "data"))
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise BadWeights(f"{spec}: {path} is no zip of stable-baselines3, or was cut short ({error}).") from None
    except Exception as error:  # torch raises pickle's own errors for what weights_only refuses
        if type(error).__name__ != "UnpicklingError":
            raise
        raise BadWeights(f"{spec}: policy.pth in {path} holds more than tensors, and is refused.") from None
    return _opened(spec, environment, state, settings)


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


def _opened(spec: str, environment: str, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Actor:
    eyes = next(
        (p for p in ("pi_features_extractor.", "features_extractor.") if any(k.startswith(p) for k in state)), ""
    )
    layers = sorted(int(m[1]) for key in state if (m := LAYER.fullmatch(key)))
    _check(spec, state, eyes, layers)
    kwargs = settings.get("policy_kwargs") or {}
    if kwargs.get("use_sde") or settings.get("use_sde") or kwargs.get("squash_output"):
        raise BadInput(f"{spec}: actions that depend on a state's noise (gSDE) or are squashed are not read.")
    named = re.search(r"activation\.(\w+)'", str(kwargs.get("activation_fn", "activation.Tanh'")))
    kind = activation_named(named[1] if named else "", spec)
    paths = [f"{eyes}linear.0"] * bool(eyes) + [f"mlp_extractor.policy_net.{i}" for i in layers]
    theirs = {f"layers.{i}.0": path for i, path in enumerate(paths)} | {"head": "action_net"}
    theirs |= {f"convs.{i}.0": f"{eyes}cnn.{2 * i}" for i in range(3)} if eyes else {}
    ours = {f"{a}.{part}": state[f"{b}.{part}"] for a, b in theirs.items() for part in ("weight", "bias")}
    widths, n_actions, log_std = [len(state[f"{p}.bias"]) for p in paths], len(ours["head.bias"]), state.get("log_std")
    n_inputs = ours["layers.0.0.weight"].shape[-1]
    if not eyes:
        return Actor(filled(MLP(n_inputs, widths, n_actions, kind), ours, spec), spec, environment, log_std)
    scale = 1 / 255 if kwargs.get("normalize_images", True) else 1.0
    return _seeing(spec, environment, ours, ConvMLP(_channels(ours), n_inputs, widths, n_actions, kind, scale), log_std)


def _channels(ours: Mapping[str, Tensor]) -> list[int]:
    weights = [ours[f"convs.{i}.0.weight"] for i in range(3)]
    return [weights[0].shape[1], *(len(w) for w in weights)]


def _seeing(
    spec: str, environment: str, ours: Mapping[str, Tensor], module: ConvMLP, log_std: Tensor | None
) -> PictureActor:
    network = PictureActor(filled(module, ours, spec), spec, environment, log_std, None, _channels(ours)[0])
    try:
        network.module(network.example().inputs["obs"])
    except RuntimeError as error:
        raise BadInput(
            f"{spec}: the policy does not read frames as {environment} shows them ({str(error).splitlines()[0]}). "
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
