"""`open_network`: from a name to a Network. Demo and hub networks share one path; weights are never pickles."""

import importlib
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, BadWeights, UnderstudyError, UnknownName
from understudy.networks.hf_causal_lm import HFCausalLM
from understudy.networks.listing import demo_path, networks
from understudy.networks.rungs import rung_path, rungs

FORMS = "demo, demo:NAME, ladder:NAME, hf:ORG/NAME, hf:FOLDER, py:PACKAGE.MODULE:FUNCTION"


def open_network(spec: str, dtype: str | torch.dtype | None = None, device: str | None = None) -> Network:
    """The network that `spec` names, in eval mode.

    `demo[:NAME]` and `ladder:NAME` (see `understudy ladder`) come with the package; `hf:ORG/NAME` is a causal language
    model of the Hugging Face hub or its cache, `hf:FOLDER` one on this disk; `py:PACKAGE.MODULE:FUNCTION` calls a
    function of yours, modules of the current folder included, that returns a Network. dtype: as torch names it, e.g.
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
        return _from_folder_or_hub(str(path), spec, _dtype(dtype or "float32"))
    if scheme == "ladder":
        return _rung(spec, rest, _dtype(dtype or "float32"))
    if scheme == "hf" and rest:
        return _from_folder_or_hub(rest, spec, _dtype(dtype or "auto"))
    if scheme == "py" and rest:
        return _from_function(spec, rest)
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


def _rung(spec: str, name: str, dtype: Any) -> HFCausalLM:
    """A rung of the ladder; all rungs share the demo network's tokenizer, which is kept once."""
    from transformers import AutoTokenizer

    path, shared = rung_path(name), demo_path("")
    if path is None or shared is None:
        known = [r.name for annealed in (True, False) for r in rungs(annealed) if r.name.startswith("ladder:")]
        raise UnknownName.among("rung of the ladder", spec, known or ["none is installed with this copy"])
    network = _from_folder_or_hub(str(path), spec, dtype)
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


# -- transformers -----------------------------------------------------------------------------------------------------


def _from_folder_or_hub(name: str, spec: str, dtype: Any) -> HFCausalLM:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, spec)
        name = str(folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UnknownName(f"{spec}: there is no folder {folder}.")
    local = folder.is_dir() or not _hub_is_reachable()
    with _quiet(folder.is_dir()):
        module, info = _guarded(
            spec,
            lambda: AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                local_files_only=local,
            ),
        )
    # Buffers that transformers recomputes are not in the file and are no cause for alarm; parameters are.
    missing = sorted(set(info["missing_keys"]) & {n for n, _ in module.named_parameters()})
    if missing or info.get("mismatched_keys"):
        what = missing or sorted(map(str, info["mismatched_keys"]))
        raise BadWeights(
            f"{spec}: the weights do not fill the architecture that config.json describes; {len(what)} parameters "
            f"would be random, e.g. {what[0]}. Weights and config belong to different models, or some are missing."
        )
    # transformers 5.0 makes up a tokenizer of three tokens for a folder that has none.
    own = [p for form in ("*token*", "vocab*", "*.model") for p in folder.glob(form)]
    try:
        if folder.is_dir() and not own:
            raise OSError(f"{folder} has no tokenizer")
        with _quiet(folder.is_dir()):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError, AttributeError, ImportError):
        tokenizer = None
    # Networks that come with the package were trained on rows that begin anywhere; others go by their tokenizer.
    network = HFCausalLM(module, spec, tokenizer, _bos(tokenizer) if spec.startswith("hf:") else None)
    _check_causal(network)
    return network


def _bos(tokenizer: Any) -> int | None:
    return getattr(tokenizer, "bos_token_id", None)


@torch.no_grad()
def _check_causal(network: HFCausalLM) -> None:
    ids = network.example().inputs["input_ids"]
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % network.vocab_size
    a, b = (network.forward(Batch({"input_ids": x})).logits[:, :-2].float() for x in (ids, other))
    if (a - b).abs().max() > 0.05 * a.std():
        raise BadInput(
            f"{network.name} ({type(network.module).__name__}) lets a token change the outputs before it, so it is "
            "not a causal language model. Wrap it with AnyModule, with a loss of its own."
        )


@contextmanager
def _quiet(bars_too: bool) -> Iterator[None]:
    """Without transformers' reports; download bars stay for what is not on this disk."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars_too:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars and bars_too:
            logging.enable_progress_bar()


def _hub_is_reachable() -> bool:
    """Whether the hub's name resolves; without it the cache is used at once, not after half a minute of retries."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _check_folder(folder: Path, spec: str) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{spec}: {folder} has no config.json, so it is not a transformers model. It should hold config.json and "
            "model.safetensors (and tokenizer.json for text)."
        )
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadInput(f"{spec}: {folder / 'config.json'} is not JSON: {error}.") from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        found = f"only {', '.join(pickles)}, a pickle that can run code when opened" if pickles else "no weights"
        raise BadWeights(
            f"{spec}: {folder} holds {found}; weights are read from .safetensors files only. Where you trust the file, "
            "load it with transformers and save_pretrained(folder) writes safetensors."
        )
    for path in weights:
        _check_whole(path)


def _check_whole(path: Path) -> None:
    """Compare the file's size with what its own header promises."""
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(8)
        n_header = int.from_bytes(head, "little")
        pickled = head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
        if pickled and 8 + n_header > size:  # a header of 640 bytes begins like a pickle, and is shorter than the file
            raise BadWeights(f"{path} is a pickle under another name: refused, as it can run code when opened.")
        try:
            header = json.loads(f.read(n_header)) if 8 + n_header <= size else {}
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            ends = []
    if not ends:
        raise BadWeights(f"{path} ({size} bytes) is not a safetensors file, or is cut short within its header.")
    expected = 8 + n_header + max(ends)
    if size != expected:
        raise BadWeights(f"{path} has {size} bytes where its header promises {expected}: it was cut short or changed.")


def _guarded(spec: str, load: Callable[[], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    except SafetensorError as error:
        raise BadWeights(f"{spec}: the weights cannot be read ({error}): truncated or corrupt.") from None
    except ImportError as error:
        raise UnderstudyError(f"{spec} needs a package that is not installed: {error}.") from None
    except (OSError, RuntimeError) as error:
        text = str(error)
        if "safetensors" in text and ("does not appear" in text or "no file named" in text):
            raise BadWeights(
                f"{spec} has no safetensors weights, and pickled ones are refused as they can run code when opened. "
                "Look for a converted copy, or convert it where you trust it."
            ) from None
        if isinstance(error, OSError):
            raise UnknownName(
                f"{spec} could not be loaded: {text.splitlines()[0]} Is the name right, and is the hub within reach? "
                "Without network, download it elsewhere and pass hf:FOLDER, or start with the network `demo`."
            ) from None
        why = "their shapes differ" if "mismatch" in text else text.splitlines()[0]
        raise BadWeights(f"{spec}: the weights do not fit the sizes in config.json: {why}.") from None
    except (ValueError, KeyError) as error:
        raise BadInput(
            f"{spec} is not a causal language model that transformers knows: {str(error).splitlines()[0]} Wrap another "
            "kind of module with AnyModule and pass py:PACKAGE.MODULE:FUNCTION."
        ) from None


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
