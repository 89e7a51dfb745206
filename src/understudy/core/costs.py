"""Shares of a network's parameters and of its compute that some of its modules account for."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from understudy.core.batch import Batch
from understudy.core.records.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from understudy.core.network import Network


def share_of_parameters(module: nn.Module, paths: Iterable[str], aside: Iterable[str] = ()) -> float:
    """Share of parameters under `paths`, those under `aside` counted nowhere."""
    modules = dict(module.named_modules(remove_duplicate=False))
    left_out = {id(p) for path in aside for p in modules[path].parameters()}

    def count(parameters: Iterable[Tensor]) -> int:
        return sum({id(p): p.numel() for p in parameters if id(p) not in left_out}.values())

    inside = count(p for path in _known(modules, paths) for p in modules[path].parameters())
    return inside / max(1, count(module.parameters()))


def share_of_compute(network: "Network", paths: Iterable[str], batch: Batch) -> float:
    """Share of the FLOPs of one forward pass that is spent inside `paths`; nested paths count once."""
    modules = dict(network.module.named_modules(remove_duplicate=False))
    inside, depth, began = 0, 0, 0
    counter = FlopCounterMode(display=False, custom_mapping=_FLOPS)

    def enter(*_: Any) -> None:
        nonlocal depth, began
        began = counter.get_total_flops() if depth == 0 else began
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth, inside
        depth -= 1
        inside += counter.get_total_flops() - began if depth == 0 else 0

    with ExitStack() as stack:
        for target in {modules[path] for path in _known(modules, paths)}:
            stack.callback(target.register_forward_pre_hook(enter).remove)
            stack.callback(target.register_forward_hook(leave).remove)
        with torch.no_grad(), unfused(), counter:
            network.forward(batch)
    total = counter.get_total_flops()
    if total == 0:
        raise BadInput(f"no operation of {network.name} is one whose FLOPs are counted, so there is no share of them.")
    return inside / total


def _known(modules: dict[str, nn.Module], paths: Iterable[str]) -> list[str]:
    paths = list(paths)
    for path in paths:
        if path not in modules:
            raise UnknownName.among("module", path, modules)
    return paths


def _attention(query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    """Two products: scores, and the weighted sum of values."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _experts(x: tuple, weights: tuple, *_: Any, **__: Any) -> int:
    """Each row meets the matrix of one expert."""
    return 2 * prod(x) * weights[-1]


def _recurrent(x: tuple, w_input: tuple, w_hidden: tuple, *_: Any, **__: Any) -> int:
    """Two products at each of [time, batch]."""
    return 2 * prod(x[:-1]) * (prod(w_input) + prod(w_hidden))


_FLOPS = {
    getattr(torch.ops.aten, name): flops
    for name, flops in {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_grouped_mm": _experts,
        "mkldnn_rnn_layer": _recurrent,
    }.items()
    if hasattr(torch.ops.aten, name)
}
"""What torch's own counter leaves out; fused encoder layers are counted by running them unfused."""


@contextmanager
def unfused() -> Iterator[None]:
    """Without torch's fused encoder layers: they step aside where a hook is, and round differently there."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
