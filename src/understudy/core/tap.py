"""Tap: read and edit activations of any `nn.Module` during its forward passes, with plain torch hooks.

Known traps of hooks, each turned into an error here: a site that never fires, a saved tensor that a later in-place
operation rewrites, a compiled module whose hooks are skipped, a tuple whose element 0 is not the activation.
"""

import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from understudy.core.records.errors import ActivationOverwritten, HooksIgnored, NoTensor, SiteNeverFired, UnknownName
from understudy.core.site import Site

Edit = Callable[[Tensor, int], Tensor]
"""`(activation, call index) -> activation` of the same shape; the result is cast to the site's dtype and device."""


class _Stop(BaseException):
    """Unwinds a forward pass. Not an Exception, so that `except Exception` in model code cannot swallow it."""


class Tap(AbstractContextManager["Tap"]):
    """Inside the block every forward pass of `module` fills `reads` and applies `edits`.

    A read sees the activation as the module made it, before any edit of the same site. `calls(site)` is one tensor a
    call; `tap[site]` is the tensor of a site that fired once. `stop_after` maps read sites to how often they fire: once
    all have, the forward pass is abandoned (the block then ends quietly and the output is lost).

    Raises UnknownName for a module that is not there, HooksIgnored for compiled modules, NoTensor where there is no
    floating tensor, SiteNeverFired and ActivationOverwritten at the end of the block.
    """

    def __init__(
        self,
        module: nn.Module,
        reads: Iterable[Site] = (),
        edits: Mapping[Site, Edit] | None = None,
        *,
        stop_after: Mapping[Site, int] | None = None,
        detach: bool = True,
        clone: bool = False,
    ) -> None:
        self.module, self.detach, self.clone = module, detach, clone
        self.reads, self.edits = tuple(dict.fromkeys(reads)), dict(edits or {})
        self._left = dict(stop_after) if stop_after else None
        self._values: dict[Site, list[Tensor]] = {}
        self._versions: list[tuple[Site, Tensor, int]] = []
        self._fired: set[Site] = set()
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._plan: dict[tuple[str, str], list[Site]] = defaultdict(list)
        self._modules = dict(module.named_modules(remove_duplicate=False))
        for site in dict.fromkeys([*self.reads, *self.edits]):
            self._check(site)
            self._plan[site.module, site.direction].append(site)

    def _check(self, site: Site) -> None:
        if site.module not in self._modules:
            raise UnknownName.among(f"module of {type(self.module).__name__}", site.module, self._modules)
        parts = site.module.split(".") if site.module else []
        for i in range(len(parts) + 1):
            part = self._modules[".".join(parts[:i])]
            if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
                raise HooksIgnored(
                    f"{site} lies inside a compiled module ({'.'.join(parts[:i]) or 'the root'}), whose hooks torch "
                    "skips. Pass the module before torch.compile (its `_orig_mod`), or compile block by block."
                )

    def __enter__(self) -> "Tap":
        self._thread = threading.get_ident()
        with ExitStack() as stack:
            # Call indices count within one forward pass; `generate` makes many.
            begin = self.module.register_forward_pre_hook(self._begin, prepend=True)
            stack.callback(begin.remove)
            for (name, direction), sites in self._plan.items():
                target = self._modules[name]
                if direction == "out":
                    handle = target.register_forward_hook(
                        lambda m, args, out, sites=sites: self._fire(sites, m, out), always_call=False
                    )
                else:
                    handle = target.register_forward_pre_hook(
                        lambda m, args, kwargs, sites=sites: self._fire_input(sites, m, args, kwargs), with_kwargs=True
                    )
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def _begin(self, module: nn.Module, args: tuple) -> None:
        if threading.get_ident() == self._thread:
            self._counts.clear()

    def _fire_input(self, sites: list[Site], module: nn.Module, args: tuple, kwargs: dict) -> Any:
        new = self._fire(sites, module, {"args": args, "kwargs": kwargs})
        return None if new is None else (new["args"], new["kwargs"])

    def _fire(self, sites: list[Site], module: nn.Module, box: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        key = (sites[0].module, sites[0].direction)
        call = self._counts[key]
        self._counts[key] += 1
        changed = False
        for site in sites:
            if site.call not in (None, call):
                continue
            path = find(box, site, module)
            value = get(box, path)
            self._fired.add(site)
            if site in self.reads:
                self._save(site, value)
            if site in self.edits:
                new = self.edits[site](value, call)
                if new is not value:
                    if not isinstance(new, Tensor) or new.shape != value.shape:
                        raise NoTensor(f"the edit at {site} returned {_describe(new)}, not {_describe(value)}.")
                    box, changed = put(box, path, new.to(value)), True
        if self._left is not None and not any(self._left.values()):
            raise _Stop
        return box if changed else None

    def _save(self, site: Site, value: Tensor) -> None:
        kept = value.detach() if self.detach else value
        if self.clone:
            kept = kept.clone()
        elif not kept.is_inference():
            self._versions.append((site, kept, kept._version))
        self._values.setdefault(site, []).append(kept)
        if self._left is not None and site in self._left:
            self._left[site] = max(0, self._left[site] - 1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._stack.close()
        stopped = kind is _Stop
        if kind is None or stopped:
            self._verify(reached_end=not stopped)
        return stopped

    def _verify(self, reached_end: bool) -> None:
        wanted = [*self.reads, *self.edits] if reached_end else [*self.reads]
        silent = [str(s) for s in dict.fromkeys(wanted) if s not in self._fired]
        if silent:
            raise SiteNeverFired(
                f"the forward pass never reached {', '.join(silent)}: a fused kernel, a skipped branch, a call index "
                "beyond the last, or a module whose weights are used without calling it. Choose the module around it."
            )
        for site, kept, version in self._versions:
            if kept._version != version:
                raise ActivationOverwritten(
                    f"what was read at {site} was changed afterwards by an in-place operation. Read it with clone=True."
                )

    def calls(self, site: Site) -> list[Tensor]:
        """What was read at `site`, one tensor for each call of its module."""
        return self._values[site]

    def __getitem__(self, site: Site) -> Tensor:
        values = self._values[site]
        if len(values) > 1:
            raise NoTensor(f"{site} fired {len(values)} times: use .calls(site), or a site with a call index (#0).")
        return values[0]


def find(box: Any, site: Site, module: nn.Module) -> tuple:
    """The path to a site's tensor inside a module's output, or inside {"args", "kwargs"} of its input.

    Raises NoTensor with what is there instead.
    """
    if not site.path:
        path = _first_floating(box)
        if path is None:
            raise NoTensor(f"{site} holds no floating tensor but {_describe(box)}. Name one by its path, e.g. out.1.")
        return path
    steps: list[Any] = [int(s) if s.isdigit() else s for s in site.path]
    if site.direction == "in":
        steps = _input_steps(box, steps, module)
    try:
        found = get(box, tuple(steps))
    except (KeyError, IndexError, TypeError, AttributeError):
        found = None
    if not isinstance(found, Tensor):
        raise NoTensor(f"{site}: no tensor at that path; the module's {site.direction}put is {_describe(box)}.")
    return tuple(steps)


def _input_steps(box: Any, steps: list[Any], module: nn.Module) -> list[Any]:
    first, rest = steps[0], steps[1:]
    if isinstance(first, int):
        return ["args", first, *rest]
    if first in box["kwargs"]:
        return ["kwargs", first, *rest]
    names = list(inspect.signature(module.forward).parameters)
    return ["args", names.index(first), *rest] if first in names else ["kwargs", first, *rest]


def _first_floating(box: Any) -> tuple | None:
    if isinstance(box, Tensor):
        return () if box.is_floating_point() or box.is_complex() else None
    items = box.items() if isinstance(box, Mapping) else enumerate(box) if isinstance(box, (tuple, list)) else ()
    for key, value in items:
        path = _first_floating(value)
        if path is not None:
            return (key, *path)
    return None


def get(box: Any, path: tuple) -> Any:
    for key in path:
        box = box[key]
    return box


def put(box: Any, path: tuple, new: Tensor) -> Any:
    """A copy of `box` with the tensor at `path` replaced; the original is untouched."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(box, Mapping):
        items = {k: put(v, rest, new) if k == key else v for k, v in box.items()}
        return items if type(box) is dict else type(box)(**items)
    items = list(box)
    items[key] = put(items[key], rest, new)
    return type(box)(*items) if hasattr(box, "_fields") else type(box)(items)


def _describe(box: Any) -> str:
    if isinstance(box, Tensor):
        return f"a {box.dtype} tensor {tuple(box.shape)}"
    if isinstance(box, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in box.items()) + "}"
    if isinstance(box, (tuple, list)):
        return "(" + ", ".join(_describe(v) for v in box) + ")"
    return type(box).__name__
