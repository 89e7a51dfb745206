"""The kind of each target token, where the data is Python source: free labels for slices."""

import torch
from torch import Tensor

from understudy.core.network import Network
from understudy.data import Packed, Tokens, open_data, pack
from understudy.data.packing import separator_of
from understudy.data.token_kinds import token_kinds


def target_kinds(network: Network, spec: str, split: str, packed: Packed) -> Tensor | None:
    """For each place the kind of the token it predicts, [rows, context], -1 where unknown; None without Python."""
    backend = getattr(network.tokenizer, "backend_tokenizer", None)
    if backend is None or not spec.startswith(("stdlib", "text:")):
        return None
    head = [0] if separator_of(network.tokenizer) is not None else []
    rows, python = [], False
    for document in open_data(spec, split):  # pyright: ignore[reportArgumentType]
        encoding = backend.encode(document.text, add_special_tokens=False)
        known = document.name.endswith(".py")
        python |= known
        kinds = token_kinds(document.text, encoding.offsets) + 1 if known else [0] * len(encoding.ids)
        rows.append(Tokens([*head, *kinds]))
    if not python:
        return None
    kinds = pack(rows, packed.tokens.shape[1]).tokens.long() - 1
    if kinds.shape != packed.tokens.shape:
        return None
    out = torch.full_like(kinds, -1)
    out[:, :-1] = kinds[:, 1:]
    return out
