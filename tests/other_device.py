"""A second device that every machine has: tensors whose data lie on the CPU but which say they are elsewhere.

Inside `OtherDevice()` a tensor moved to `DEVICE`, or made there, is an `Elsewhere`. An operation that mixes one with an
ordinary tensor raises Mixed, as CUDA would, with the same two exceptions: a CPU tensor without axes, and CPU tensors
that index. Results are those of the CPU. It cannot show what a real device computes, only that nothing is left behind.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")
"""A kind of device that torch can name and that no build of it initialises."""
aten = torch.ops.aten
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_same_size.default}


class Mixed(AssertionError):
    """An operation was given tensors of two devices."""


class Elsewhere(Tensor):
    """A tensor on the other device; `data` holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE,
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor(numbers, device=DEVICE)` makes its tensor before any dispatch: made on the CPU, then moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].held.tolist()
        return func(*args, **kwargs)


class OtherDevice(TorchDispatchMode):
    """Makes tensors that are asked for on `DEVICE`, and counts what ran there."""

    n_ops = 0

    def __enter__(self) -> "OtherDevice":
        self._numbers = _FromNumbers()
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_ops += any(isinstance(x, Elsewhere) for x in tree_flatten((args, kwargs))[0])
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = any(isinstance(x, Elsewhere) for x in flat)
    asked = kwargs.get("device")
    if op not in (aten._to_copy.default, aten.copy_.default):
        _check(op, args, kwargs, flat, there)
    if asked is not None:
        there = torch.device(asked) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if op is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    out = op(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not there or op in _READS:
        return out
    given = {id(_held(x)): x for x in flat}  # operations in place give back what they were given
    return tree_map(lambda x: _wrapped(given, x), out)


def _check(op: Any, args: Any, kwargs: Any, flat: list[Tensor], there: bool) -> None:
    here = [x for x in flat if not isinstance(x, Elsewhere) and x.dim() > 0]
    if op in _INDEXES and isinstance(args[0], Elsewhere):
        here = [x for x in here if not any(x is i for i in args[1])]
    if there and here:
        raise Mixed(f"{op} mixes a CPU tensor {tuple(here[0].shape)} with one that is elsewhere.")


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


def _wrapped(given: dict[int, Tensor], x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return given[id(x)] if id(x) in given else Elsewhere(x)
