"""Entry: a dictionary in a file whose header was read and checked; its tensors are read when asked for."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from understudy.core.records.errors import BadWeights


@dataclass(frozen=True)
class Entry:
    """One dictionary of a file: what it reads and writes by the file's own hook names, and sizes.

    Its arithmetic is `core.linear`'s: formats that scale, gate or rescale latents are folded by `load`.
    """

    format: str
    address: str
    """Where it lies below what was opened, e.g. `layer_3/width_16k/average_l0_70`."""
    kind: Literal["sae", "transcoder", "clt"]
    read: str
    writes: tuple[str, ...]
    d_in: int
    d_out: int
    """Width of each written site."""
    n_latents: int
    rule: Mapping[str, Any]
    """The sparsity rule's settings, as `DictionarySpec` holds them."""
    load: Callable[[], dict[str, Tensor]]
    """W_enc, b_enc, W_dec, b_dec and, where there are any, W_skip and sparsity.theta: float32, one row a latent."""
    bias: Callable[[], Tensor] | None = None
    """The bias of the first written site, where it belongs to the group (a cross-layer transcoder)."""
    group: str = ""
    """Entries of one group are summed; empty: a group of its own."""
    model: str = ""
    """The network the file says it was trained on."""
    is_centred: bool = False
    """True if it was trained on a network whose writing weights were centred, so that its activations have mean 0."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says that matters to a judge: dataset, context length, BOS."""


THRESHOLD = {"name": "threshold"}

Wanted = Callable[[str], bool]
"""Whether the dictionary at an address below the root is asked for: nothing of the others is opened."""


def everything(address: str) -> bool:
    return True


def topk(path: Path, k: Any, n_latents: int) -> dict[str, Any]:
    """Settings of a TopK rule. Raises BadWeights for a k that cannot be."""
    if not isinstance(k, (int, float)) or k != int(k) or not 1 <= k <= n_latents:
        raise BadWeights(f"{path} says k={k!r}; it must be a whole number from 1 to the {n_latents} latents there are.")
    return {"name": "topk", "k": int(k)}


def groupmax(path: Path, k: Any, n_latents: int) -> dict[str, Any]:
    """Settings of a GroupMax rule: k groups of one size. Raises BadWeights for a k that cannot be."""
    rule = topk(path, k, n_latents)
    if n_latents % rule["k"]:
        raise BadWeights(f"{path} says groupmax with k={k}: {n_latents} latents are not {k} groups of one size.")
    return rule | {"name": "groupmax"}


def at_least_zero(theta: Tensor) -> Tensor:
    """A threshold below 0 acts as 0: these formats apply a ReLU as well."""
    return theta.clamp(min=0)


def subtracting(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """An SAE that encodes x as it is, as one that encodes x - b_dec: b_enc takes W_enc b_dec. In place."""
    moved = arrays["W_enc"].double() @ arrays["b_dec"].double()
    arrays["b_enc"] = (arrays["b_enc"].double() + moved).float()
    return arrays


def centred(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """An SAE of activations with mean 0, for raw ones: reads x less its mean over the width, passes the mean through.

    arrays are those of a kind that encodes x - b_dec. In place.
    """
    W, b_dec = arrays["W_enc"].double(), arrays["b_dec"].double()
    plain = W - W.mean(1, keepdim=True)
    arrays["b_enc"] = (arrays["b_enc"].double() + plain @ b_dec - W @ b_dec).float()
    arrays["W_enc"] = plain.float()
    d = len(b_dec)
    arrays["W_skip"] = torch.full((d, d), 1 / d)
    return arrays


def layer_of(text: str, pattern: str, where: str) -> int:
    """The layer number that `pattern` finds. Raises BadWeights."""
    found = re.search(pattern, text)
    if found is None:
        raise BadWeights(f"{where} does not say which layer it belongs to: {text!r} has no {pattern!r}.")
    return int(found[1])
