"""Find the blocks of a stack and what their children do, by structure and by probes, without a table of models.

A child that makes one place's output depend on another place is attention or a mixer; one that does not, and holds
weight matrices, is an MLP. What is found is tried on the example batch before it gets a name.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from understudy.core.records.errors import UnderstudyError
from understudy.core.site import Site
from understudy.core.tap import Tap

Role = Literal["attn", "mixer", "mlp"]
MLP_WORDS = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "ff")
PERTURBED = 2
"""The place that is changed to see which others notice."""


@dataclass(frozen=True)
class Child:
    """A part of a block: where it reads, where it writes, and the modules it consists of."""

    role: Role
    read: Site
    write: Site
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    path: str
    children: tuple[Child, ...]
    addends: tuple[Site, ...] = ()
    """The sites whose sum is what the block adds to its input, in forward order; empty where there is no such sum."""


class Call(NamedTuple):
    """What one module was given and gave back, and when."""

    time: int
    inputs: dict[str, Tensor]
    """Floating tensors by the port that names them; the key `in` is the first one."""
    output: Tensor | None


@dataclass
class Probe:
    """First calls of every module under some blocks, from one forward pass."""

    module: nn.Module
    calls: dict[str, Call] = field(default_factory=dict)
    places: tuple[int, ...] = ()


def stacks(module: nn.Module) -> dict[str, list[str]]:
    """Stacks of blocks: lists of at least one child with parameters, of few classes, outermost first: blocks' paths."""
    found: dict[str, list[str]] = {}
    for name, m in module.named_modules():
        if isinstance(m, (nn.ModuleList, nn.Sequential)) and not any(name.startswith(f + ".") for f in found):
            big = {n: c for n, c in m.named_children() if next(c.parameters(), None) is not None}
            n, kinds = len(big), len({type(c).__name__ for c in big.values()})
            repeats = kinds < n or (n == 1 and isinstance(m, nn.ModuleList))
            if repeats and kinds <= max(2, n // 2):
                found[name] = [f"{name}.{child}" if name else child for child in big]
    return found


def block_paths(module: nn.Module, n_blocks: int | None = None) -> list[str]:
    """Paths of the largest stack's blocks; `n_blocks`, where known, and transformers' registries come first."""
    found = stacks(module)
    if not found:
        return []
    modules = dict(module.named_modules())
    registered = _registered(module, "hidden_states") | set(getattr(module, "_no_split_modules", None) or ())

    def rank(name: str) -> tuple[bool, bool, int]:
        blocks = [modules[p] for p in found[name]]
        return (
            any(type(b).__name__ in registered for b in blocks),
            n_blocks == len(blocks),
            sum(p.numel() for b in blocks for p in b.parameters()),
        )

    return found[max(found, key=rank)]


def _registered(module: nn.Module, key: str) -> set[str]:
    """Class names under `key` of the registry by which transformers records a model's outputs."""
    entry = (getattr(module, "_can_record_outputs", None) or {}).get(key, [])
    entries = entry if isinstance(entry, (list, tuple)) else [entry]
    classes = [getattr(e, "target_class", e) for e in entries]
    return {c if isinstance(c, str) else c.__name__ for c in classes if c is not None}


def analyse(module: nn.Module, forward: Callable[[], Any], paths: list[str], places: tuple[int, ...]) -> list[Block]:
    """The roles of each block's children. `forward` runs the example batch, `places` are its [batch, pos]."""
    with torch.no_grad():
        probe = _probe(module, forward, paths, places)
        roles: dict[tuple[str, ...], Role | None] = {}
        return _alike(probe, [_block(probe, forward, path, roles) for path in paths])


def _alike(probe: Probe, blocks: list[Block]) -> list[Block]:
    """Blocks of one class with the addends that most of them were found to have.

    In half precision the sum is lost in rounding where a block adds little to a large stream. There the addends of its
    kin are tried, with the rounding of the stream itself allowed.
    """

    def relative(block: Block) -> tuple[str, ...]:
        return tuple(str(s).removeprefix(block.path) for s in block.addends)

    def kind(block: Block) -> type[nn.Module]:
        return type(probe.module.get_submodule(block.path))

    found = Counter((kind(b), relative(b)) for b in blocks if b.addends)
    usual = {k: names for (k, names), _ in reversed(found.most_common())}
    out = []
    for block in blocks:
        names = usual.get(kind(block), ())
        sites = tuple(Site.parse(block.path + name) for name in names)
        out.append(replace(block, addends=sites) if not block.addends and _rounded(probe, block, sites) else block)
    return out


def _rounded(probe: Probe, block: Block, sites: tuple[Site, ...]) -> bool:
    """Whether the block's input and these sum to its output, but for the rounding of the output."""
    stream = probe.calls[block.path].output if block.path in probe.calls else None
    values = [probe.calls[s.module].output if s.module in probe.calls else None for s in sites]
    if not sites or stream is None or any(v is None or v.numel() != stream.numel() for v in values):
        return False
    before = next((v for v in probe.calls[block.path].inputs.values() if v.shape == stream.shape), None)
    if before is None:
        return False
    total = before.float() + sum(v.reshape(stream.shape).float() for v in values if v is not None)
    allowed = 4 * torch.finfo(stream.dtype).eps * float(stream.abs().max())
    return float((total - stream.float()).abs().max()) <= allowed


def _probe(module: nn.Module, forward: Callable[[], Any], paths: list[str], places: tuple[int, ...]) -> Probe:
    probe = Probe(module, places=places)

    def keep(name: str, args: tuple, kwargs: dict, output: Any) -> None:
        if name not in probe.calls:
            inputs = {f"in.{k}": v.clone() for k, v in [*enumerate(args), *kwargs.items()] if _floating(v)}
            first = next(_tensors({"args": args, "kwargs": kwargs}), None)
            inputs |= {} if first is None else {"in": first.clone()}
            out = next(_tensors(output), None)
            probe.calls[name] = Call(len(probe.calls), inputs, None if out is None else out.clone())

    with ExitStack() as stack:
        for name, m in module.named_modules():
            if any(name == p or name.startswith(p + ".") for p in paths):
                hook = lambda m, args, kwargs, out, name=name: keep(name, args, kwargs, out)  # noqa: E731
                stack.callback(m.register_forward_hook(hook, with_kwargs=True).remove)
        forward()
    return probe


def _tensors(box: Any) -> Iterator[Tensor]:
    if _floating(box):
        yield box
    items = box.values() if isinstance(box, dict) else box if isinstance(box, (tuple, list)) else ()
    for item in items:
        yield from _tensors(item)


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _block(probe: Probe, forward: Callable[[], Any], path: str, roles: dict[tuple[str, ...], Role | None]) -> Block:
    block = probe.module.get_submodule(path)
    stream = probe.calls[path].output if path in probe.calls else None
    if stream is None:
        return Block(path, ())
    children: list[Child] = []
    for names in _candidates(probe, path, block, stream):
        child = _placed(probe, names, stream)
        if child is None:
            continue
        key = tuple(f"{n.rpartition('.')[2]} {type(probe.module.get_submodule(n)).__name__}" for n in names)
        if key not in roles:
            roles[key] = _role(probe, forward, child)
        if roles[key] is not None:
            children.append(Child(roles[key], child.read, child.write, child.modules))  # pyright: ignore
    children = _one_each(probe, children)
    return Block(path, tuple(children), _addends(probe, path, stream, children))


def _candidates(probe: Probe, path: str, block: nn.Module, stream: Tensor) -> Iterator[tuple[str, ...]]:
    """Children with weight matrices, in the order they are called; a chain of loose Linears is one candidate."""
    names = [f"{path}.{n}" for n, c in block.named_children() if any(p.dim() > 1 for p in c.parameters())]
    names = sorted((n for n in names if n in probe.calls), key=lambda n: probe.calls[n].time)
    loose = [n for n in names if _matrix(probe.module.get_submodule(n)) is not None]
    for name in names:
        if name not in loose:
            yield (name,)
    if len(loose) > 1:
        first, last = probe.calls[loose[0]].inputs.get("in"), probe.calls[loose[-1]].output
        if first is not None and last is not None and first.shape[-1] == last.shape[-1] == stream.shape[-1]:
            yield tuple(loose)


def _placed(probe: Probe, names: tuple[str, ...], stream: Tensor) -> Child | None:
    """Where a candidate reads and writes the stream; None where it does not."""
    call, out = probe.calls[names[0]], probe.calls[names[-1]].output
    shapes = (stream.shape, stream.flatten(0, -2).shape)
    ports = [port for port, value in call.inputs.items() if value.shape in shapes]
    if out is None or out.shape not in shapes or not ports:
        return None
    port = "in" if "in" in ports else ports[0]
    write = Site(names[-1])
    # Some modules are handed the residual stream and return it with their own result added (Bloom's).
    for other in (call.inputs[p] for p in ports if not torch.equal(call.inputs[p], call.inputs[port])):
        inner = [n for n in probe.calls if n.startswith(names[-1] + ".")]
        sums = [n for n in inner if _close(_plus(probe.calls[n].output, other), out)]
        write = Site(sums[-1]) if sums else write
    return Child("mlp", Site(names[0], port), write, names)


def _role(probe: Probe, forward: Callable[[], Any], child: Child) -> Role | None:
    """Change one place of what the child reads and see whether what it writes changes at others."""
    n_places = probe.places[1] if len(probe.places) > 1 else 1
    before: list[Tensor] = []

    def split(value: Tensor) -> Tensor:
        return value if value.dim() > 2 else value.unflatten(0, probe.places)

    def perturb(value: Tensor, call: int) -> Tensor:
        new = split(value).clone()
        new[:, PERTURBED] = 2 * new[:, PERTURBED - 1] - 3 * new[:, PERTURBED]
        return new.reshape(value.shape)

    for edits in ({}, {child.read: perturb}):
        tap = Tap(probe.module, [child.write], edits, stop_after={child.write: 1}, clone=True)
        with tap:
            forward()
        before.append(split(tap.calls(child.write)[0]).float())
    change = (before[1] - before[0]).abs().amax(-1).amax(0)
    if change.max() == 0:
        return None
    others = torch.arange(n_places, device=change.device) != PERTURBED
    if change[others].max() <= 1e-3 * change[PERTURBED]:
        return "mlp"
    module = probe.module.get_submodule(child.modules[-1])
    kind = type(module).__name__
    is_attention = kind in _registered(probe.module, "attentions") or "att" in kind.lower()
    return "attn" if is_attention else "mixer"


def _one_each(probe: Probe, children: list[Child]) -> list[Child]:
    """At most one child for each role: by name, then by size."""

    def rank(child: Child) -> tuple[bool, int]:
        name = child.modules[-1].rpartition(".")[2].lower()
        size = sum(p.numel() for m in child.modules for p in probe.module.get_submodule(m).parameters())
        return any(w in name for w in MLP_WORDS), size

    best = {role: max((c for c in children if c.role == role), key=rank) for role in {c.role for c in children}}
    return [c for c in children if best[c.role] is c]


def _addends(probe: Probe, path: str, stream: Tensor, children: list[Child]) -> tuple[Site, ...]:
    """Sites whose values sum to what the block adds to its input."""
    before = next((v for v in probe.calls[path].inputs.values() if v.shape == stream.shape), None)
    if before is None:
        return ()
    names = [c.write.module for c in children] + [n for n in probe.calls if n.rpartition(".")[0] == path]
    values = {n: probe.calls[n].output for n in dict.fromkeys(names)}
    usable = {n: v.reshape(stream.shape) for n, v in values.items() if v is not None and v.numel() == stream.numel()}
    for size in (1, 2, 3):
        for chosen in combinations(usable, size):
            if _close(sum(usable[n] for n in chosen), stream - before):  # pyright: ignore[reportArgumentType]
                return tuple(Site(n) for n in sorted(chosen, key=lambda n: probe.calls[n].time))
    return ()


def last_matrix(probe_module: nn.Module, child: Iterable[str]) -> list[str]:
    """Paths of the weight matrices inside a part, last registered first."""
    paths = [f"{p}.{n}" if n else p for p in child for n, _ in probe_module.get_submodule(p).named_modules()]
    return [p for p in reversed(paths) if _matrix(probe_module.get_submodule(p)) is not None]


def _matrix(module: nn.Module) -> Tensor | None:
    """[d_in, d_out] of a module that multiplies its input by one matrix and adds at most a bias."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or next(module.children(), None) is not None:
        return None
    if isinstance(module, nn.Linear):
        return weight.T
    # transformers' Conv1D keeps its matrix the other way round.
    return weight if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


def matrix(module: nn.Module) -> Tensor:
    """[d_in, d_out] of a module found by `last_matrix`."""
    found = _matrix(module)
    if found is None:
        raise UnderstudyError(f"{type(module).__name__} is not one matrix product.")
    return found


def _plus(a: Tensor | None, b: Tensor) -> Tensor | None:
    return a + b if a is not None and a.shape == b.shape else None


def _close(a: Tensor | None, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal to `tolerance` of b's largest value (a hundred times that in half precision)."""
    if a is None or a.shape != b.shape:
        return False
    loose = 100 if torch.finfo(a.dtype).eps > 1e-5 else 1
    scale = b.abs().max()
    return bool(scale > 0 and (a - b).abs().max() <= loose * tolerance * scale)
