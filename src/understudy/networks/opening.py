"""`open_network`: from a name to a Network. Demo and hub networks share one path; weights are never pickles."""

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName
from understudy.networks.actor_opening import is_actor, open_actor
from understudy.networks.gru import is_gru, open_gru
from understudy.networks.hf_causal_lm import HFCausalLM
from understudy.networks.hf_opening import open_hf
from understudy.networks.listing import demo_path, networks
from understudy.networks.rungs import rung_path, rungs
from understudy.networks.sb3_opening import open_sb3

FORMS = (
    "demo, demo:NAME, ladder:NAME, organism:NAME, hf:ORG/NAME, hf:FOLDER, sb3:FILE.zip@ENVIRONMENT, "
    "py:PACKAGE.MODULE:FUNCTION"
)


def open_network(spec: str, dtype: str | torch.dtype | None = None, device: str | None = None) -> Network:
    """The network that `spec` names, in eval mode.

    `demo[:NAME]` and `ladder:NAME` (see `understudy ladder`) come with the package; `hf:ORG/NAME` is a causal language
    model or an image classifier of the Hugging Face hub or its cache, `hf:FOLDER` one on this disk;
    `sb3:FILE.zip@ENVIRONMENT` is a policy that stable-baselines3 saved; `py:PACKAGE.MODULE:FUNCTION` calls a function
    of yours, modules of the current folder included, that returns a Network. dtype: as torch names it, e.g.
    "bfloat16"; default float32 for what comes with the package, else as saved. device: see `find_device`; None leaves
    it where it is.

    Raises UnknownName, BadWeights for weights that are truncated, corrupt or pickled, BadInput for what is no causal
    language model.
    """
    where = None if device is None else find_device(device)
    network = _opened(spec, dtype)
    stays = where is None or (device == "auto" and network.device.type != "cpu")
    return network if stays else network.to(where)  # pyright: ignore[reportArgumentType]


def _opened(spec: str, dtype: str | torch.dtype | None) -> Network:
    scheme, _, rest = spec.partition(":")
    if scheme == "demo":
        path = demo_path(rest)
        if path is None:
            known = [card.name for card in networks()]
            raise UnknownName.among("network", spec, known or ["none is installed with this copy"])
        return _demo(path, spec, _dtype(dtype or "float32"))
    if scheme == "sb3" and rest:
        return open_sb3(spec, rest)
    if scheme == "ladder":
        return _rung(spec, rest, _dtype(dtype or "float32"))
    if scheme == "hf" and rest and is_gru(Path(rest).expanduser()):
        return open_gru(Path(rest).expanduser(), spec, _dtype(dtype or "auto"))
    if scheme == "hf" and rest:
        return open_hf(rest, spec, _dtype(dtype or "auto"))
    if scheme == "py" and rest:
        return _from_function(spec, rest)
    if scheme == "organism":
        raise UnknownName(f"{spec}: organisms are opened by `understudy.open_network`; this one opens networks alone.")
    raise _unknown(spec)


def find_device(name: str) -> torch.device:
    """The device that `--device` names: cpu, cuda, cuda:1; `auto` is the first GPU where there is one.

    Raises UnknownName for what is no device, BadInput for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownName.among("device", name, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n:
            raise BadInput(f"device {name}: torch {torch.__version__} finds {n} GPUs here. Use --device auto or cpu.")
    return device


def _demo(path: Path, spec: str, dtype: Any) -> Network:
    if is_actor(path):
        return open_actor(path, spec)
    return _reads_text(open_gru(path, spec, dtype) if is_gru(path) else open_hf(str(path), spec, dtype))


def _rung(spec: str, name: str, dtype: Any) -> Network:
    path = rung_path(name)
    if path is None:
        known = [r.name for annealed in (True, False) for r in rungs(annealed) if r.name.startswith("ladder:")]
        raise UnknownName.among("rung of the ladder", spec, known or ["none is installed with this copy"])
    return _reads_text(open_hf(str(path), spec, dtype))


def _reads_text(network: Network) -> Network:
    """All language models that come with the package share the demo network's tokenizer, which is kept once."""
    from transformers import AutoTokenizer

    shared = demo_path("")
    if isinstance(network, HFCausalLM) and network.tokenizer is None and shared is not None:
        network.tokenizer = AutoTokenizer.from_pretrained(shared)
    return network


def _unknown(spec: str) -> UnknownName:
    if spec and Path(spec).expanduser().is_dir():
        return UnknownName(f"{spec!r} is a folder. If it holds a transformers model, write hf:{spec}.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return UnknownName(f"{spec!r} is not a known network. If it is on the Hugging Face hub, write hf:{spec}.")
    known = [card.name for card in networks()]
    return UnknownName.among("network", spec, known, f"A network is named as one of: {FORMS}.")


def _dtype(dtype: str | torch.dtype) -> Any:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnknownName.among("dtype", dtype, ["float32", "bfloat16", "float16", "float64"])
    return found


# -- your own ---------------------------------------------------------------------------------------------------------


def _from_function(spec: str, rest: str) -> Network:
    module_name, _, function_name = rest.partition(":")
    if not function_name:
        raise UnknownName(f"{spec!r}: write py:PACKAGE.MODULE:FUNCTION, e.g. py:my_networks:policy.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        home = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or "?"):
            raise
        where = f"in {here} or among installed packages"
        raise UnknownName(f"{spec}: there is no Python module {error.name!r} {where}.") from None
    function = getattr(home, function_name, None)
    if function is None:
        names = [n for n, v in vars(home).items() if callable(v) and not n.startswith("_")]
        raise UnknownName.among(f"function of {module_name}", function_name, names)
    try:
        network = function() if callable(function) else function
    except UnderstudyError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UnderstudyError(
            f"{spec} raised {type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})."
        ) from error
    if isinstance(network, torch.nn.Module) and hasattr(network, "lm_head") and hasattr(network, "config"):
        return HFCausalLM(network, spec)
    if isinstance(network, Network):
        return network
    raise BadInput(
        f"{spec} returned a {type(network).__name__}, not a Network. A module alone does not say what to feed it, how "
        "its activations are laid out and how far two outputs are apart. Return\n"
        '    AnyModule(module, example=Batch({"x": ...}), axes=("batch", "pos", "d"), loss=..., divergence=...)'
    )
