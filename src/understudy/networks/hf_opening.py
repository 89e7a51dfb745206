"""Models of transformers from a folder, the hub or its cache, with the adapter that fits; never from pickles."""

import json
import logging as standard_logging
import os
import socket
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
from understudy.networks.image_opening import open_classifier, own_images, picture_input


def open_hf(name: str, spec: str, dtype: Any) -> Network:
    """The model in a folder, or of that name on the hub or in its cache: a causal language model, or a classifier of
    images where its config says so. spec: what the user wrote. Raises as `open_network` does."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, spec)
        name = str(folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UnknownName(f"{spec}: there is no folder {folder}.")
    local = folder.is_dir() or not _hub_is_reachable()
    if _classifies_images(name, local):
        module = _module("AutoModelForImageClassification", name, spec, dtype, local)
        return open_classifier(module, spec, own_images(folder), picture_input(module, name, spec, local))
    network = _language_model(name, spec, dtype, local)
    _check_causal(network)
    return network


def _classifies_images(name: str, local: bool) -> bool:
    """Whether the model's config names an image classifier; what cannot be read is told by the loading of weights."""
    from transformers import AutoConfig

    try:
        with _quiet(local):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError):
        return False
    return any(a.endswith("ForImageClassification") for a in config.architectures or ())


def _module(kind: str, name: str, spec: str, dtype: Any, local: bool) -> Any:
    import transformers

    standard_logging.getLogger("transformers.integrations.hub_kernels").addFilter(_of_use)
    with _quiet(Path(name).is_dir()):
        module, info = _guarded(
            spec,
            lambda: getattr(transformers, kind).from_pretrained(
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
    return module


def _language_model(name: str, spec: str, dtype: Any, local: bool) -> HFCausalLM:
    from transformers import AutoTokenizer

    folder = Path(name)
    module = _module("AutoModelForCausalLM", name, spec, dtype, local)
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
    return HFCausalLM(module, spec, tokenizer, _bos(tokenizer) if spec.startswith("hf:") else None)


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


def _of_use(record: standard_logging.LogRecord) -> bool:
    """Recurrent models of transformers say that kernels for GPUs are missing; without a GPU that is no news."""
    return torch.cuda.is_available() or "is falling back to its reference" not in record.getMessage()


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
