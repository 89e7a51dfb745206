"""Find what a network of pictures is made of: its blocks, its convolutions, and the MLPs that act at each place alone.

Nothing goes by the names of models. Which axes of a tensor are places is seen by feeding pictures of another size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Called:
    """A module's first call in a forward pass."""

    path: str
    reads: Shape
    """Shape of its first floating argument."""
    writes: Shape
    given: int
    """Which tensor that was, by a number that holds within one pass."""
    made: frozenset[int]
    """Which tensors it put out."""


def calls(module: nn.Module, forward: Callable[[], Any]) -> dict[str, Called]:
    """Every module's first call, in the order in which they end."""
    found: dict[str, Called] = {}
    alive: list[Tensor] = []  # so that no number is given twice

    def keep(path: str, args: tuple, kwargs: dict, output: Any) -> None:
        given, made = next(_tensors([*args, *kwargs.values()]), None), list(_tensors(output))
        if given is None or not made or path in found:
            return
        alive.extend([given, *made])
        found[path] = Called(path, tuple(given.shape), tuple(made[0].shape), id(given), frozenset(map(id, made)))

    with torch.no_grad(), ExitStack() as stack:
        for name, m in module.named_modules():
            hook = lambda m, args, kwargs, out, name=name: keep(name, args, kwargs, out)  # noqa: E731
            stack.callback(m.register_forward_hook(hook, with_kwargs=True).remove)
        forward()
    return found


def axes_of(shape: Shape, other: Shape) -> tuple[str, ...] | None:
    """Names of the axes of a tensor that has `shape` for one size of pictures and `other` for another.

    Axes that differ are places. None where that does not tell: several axes left for features, or a batch axis that
    differs.
    """
    if len(shape) != len(other) or shape[0] != other[0]:
        return None
    changed = tuple(i for i, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b)
    if len(shape) == 4 and not changed and shape[2:] == (1, 1):
        return ("batch", "d", "y", "x")
    known = {
        (4, (2, 3)): ("batch", "d", "y", "x"),
        (4, (1, 2)): ("batch", "y", "x", "d"),
        (3, (1,)): ("batch", "pos", "d"),
        (3, (2,)): ("batch", "d", "pos"),
        (2, ()): ("batch", "d"),
    }
    return known.get((len(shape), changed))


def find_blocks(module: nn.Module, found: dict[str, Called]) -> list[str]:
    """Paths of the blocks: children of the largest outermost list, or of the lists inside them where they are stages.

    A stage puts out what its last block put out, or hands it to what makes the picture smaller; a residual block adds
    something to what its last layer did. What counts is composite: a module with children and a matrix or a kernel.
    """
    lists = [n for n in _lists(module, "") if _composite(module, n)]
    if not lists:
        return []
    size = {n: sum(p.numel() for p in module.get_submodule(n).parameters()) for n in lists}
    outer = _composite(module, max(lists, key=size.__getitem__))
    inner = {path: [b for n in _lists(module, path) for b in _composite(module, n)] for path in outer}

    def is_stage(path: str) -> bool:
        last = found.get(inner[path][-1]) if inner[path] else None
        beside = {found[n].given for n in found if n.rpartition(".")[0] == path}
        return last is not None and (path not in found or bool(last.made & (found[path].made | beside)))

    return [b for blocks in inner.values() for b in blocks] if all(map(is_stage, outer)) else outer


def _lists(module: nn.Module, path: str) -> Iterator[str]:
    """Paths of the lists under `path` that lie in no other list under it."""
    base = module.get_submodule(path)
    if path and isinstance(base, (nn.ModuleList, nn.Sequential)):
        yield path
        return
    for name, child in base.named_children():
        inside = f"{path}.{name}" if path else name
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield inside
        else:
            yield from _lists(module, inside)


def _composite(module: nn.Module, path: str) -> list[str]:
    children = module.get_submodule(path).named_children()
    return [
        f"{path}.{n}"
        for n, c in children
        if next(c.children(), None) is not None and any(p.dim() > 1 for p in c.parameters())
    ]


def pointwise(module: nn.Module) -> Tensor | None:
    """[d_in, d_out] of a module that multiplies what is at each place by one matrix: a Linear, or a 1 x 1 kernel."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, nn.Linear):
        return weight.T
    if isinstance(module, nn.Conv2d) and weight.shape[2:] == (1, 1) and module.groups == 1 and max(module.stride) == 1:
        return weight[:, :, 0, 0].T
    return None


def pairs(module: nn.Module, found: dict[str, Called], block: str) -> Iterator[tuple[str, str]]:
    """Matrices of a block that are called one after the other and lead from d features at many places back to d."""
    weighted = [
        path for path in found
        if path.startswith(block + ".") and any(p.dim() > 1 for p in module.get_submodule(path).parameters(False))
    ]  # fmt: skip
    for first, last in pairwise(weighted):
        a, b = (pointwise(module.get_submodule(p)) for p in (first, last))
        if a is None or b is None or a.shape[0] != b.shape[1] or a.shape[1] != b.shape[0]:
            continue
        reads = found[first].reads
        if reads == found[last].writes and prod(reads) > reads[0] * a.shape[0]:
            yield first, last


def _tensors(box: Any) -> Iterator[Tensor]:
    if isinstance(box, Tensor):
        if box.is_floating_point():
            yield box
        return
    items = box.values() if isinstance(box, dict) else box if isinstance(box, (tuple, list)) else ()
    for item in items:
        yield from _tensors(item)
