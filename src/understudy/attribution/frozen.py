"""Freeze: run a network so that it is affine in its leaves, by holding factors at the value of a clean pass.

Every operation on something live (that depends on a leaf) is linear, follows a rule, or is refused by name. A rule
writes the operation as `linear part x held factor` with the same value, so nothing of the clean pass changes:

    softmax             held whole ("pattern"), as are sigmoid, exp and their like ("gate")
    norms               centred linearly, their scale held ("norm scale"), hand-written ones included
    activations         f(x) = x . [f(x) / x], the ratio held ("activation ratio")
    product of two      the factor that came out of an activation is held ("gate"); of two equal ones each is held in
                        half ("split product"): ab = a[b]/2 + [a]b/2
    choices             indices and masks are held ("routing")

What is held is kept on a tape, keyed by module path, operation and order, so that later passes with other leaves run
the same affine map: that is what the certificate tests. Local replacement models of Ameisen et al. 2025 ("Circuit
Tracing", section "Attribution graphs") freeze patterns and norm scales; gates and ratios are ours.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from understudy.core.records.errors import UnderstudyError

Rule = Callable[["Freeze", Callable[..., Any], tuple, dict], Any]
Key = tuple[str, str, int, int]
"""Module path, operation, its how manieth call there, and which of its factors."""


class UnknownOperation(UnderstudyError):
    """An operation on live values for which there is no rule."""


@dataclass
class Tape:
    """What one clean pass held, and where."""

    values: dict[Key, Tensor] = field(default_factory=dict)
    rules: dict[Key, str] = field(default_factory=dict)
    results: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    """The autograd node of each call's live result, until `forget_unreached`."""
    unreached: set[Key] = field(default_factory=set)
    """Held by calls that lead to nothing that is read: a query-key product under a held pattern, a replaced module."""

    def forget_unreached(self, reached: set[Any]) -> None:
        """Let go of what no read value depends on. reached: autograd nodes behind everything that is read."""
        results = self.results
        self.unreached = {
            k for k, rule in self.rules.items()
            # Gradients do not show what a choice of experts leads to.
            if rule != "routing" and k[:3] in results and results[k[:3]] not in reached
        }  # fmt: skip
        for key in self.unreached:
            del self.values[key], self.rules[key]
        self.results.clear()

    def uses(self) -> dict[tuple[str, str], list[str]]:
        """Module paths by (rule, operation)."""
        out: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for (path, operation, *_), rule in self.rules.items():
            out[rule, operation][path.partition(">")[0]] = None
        return {k: list(v) for k, v in out.items()}


class Freeze(TorchFunctionMode):
    """Inside, forward passes of `module` follow the rules. The first pass fills an empty tape; later ones replay it.

    thawed: rules that are not held in this pass; their operations run as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        tape: Tape,
        rules: Mapping[str, Rule],
        linear: Iterable[str],
        thawed: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.module, self.tape, self.rules, self.linear = module, tape, rules, frozenset(linear)
        self.replaying, self.thawed = bool(tape.values), frozenset(thawed)
        self.path: list[str] = [""]
        self.paused = False
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._call, self._held = ("", "", 0), 0
        self._gates: dict[int, Tensor] = {}

    # -- what rules use ---------------------------------------------------------------------------------------------

    @property
    def operation(self) -> str:
        """Name of the operation that is running."""
        return self._call[1]

    def held(self, rule: str, make: Callable[[], Tensor]) -> Tensor | None:
        """The factor to hold: made now in a clean pass, from the tape later. None: the rule is thawed."""
        key = (*self._call, self._held)
        self._held += 1
        if rule in self.thawed:
            return None
        if self.replaying:
            if key in self.tape.unreached:
                return None
            if key not in self.tape.values:
                if self.thawed:
                    return None  # what was thawed made this live: it was no product of two in the clean pass
                raise UnderstudyError(
                    f"{self.operation} in {self.path[-1] or 'the network'} ran more often than in the clean pass: its "
                    "control flow depends on values. Freeze the module around it, or use integrated gradients."
                )
            return self.tape.values[key]
        value = make().detach()
        self.tape.values[key] = value
        self.tape.rules[key] = rule
        return value

    def mark_gate(self, value: Tensor) -> Tensor:
        """Remember that this came out of an activation: in a product it is the factor to hold."""
        self._gates[id(value)] = value
        return value

    def is_gate(self, value: Tensor) -> bool:
        return self._gates.get(id(value)) is value

    # -- the mode ---------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = operation_name(func)
        self._begin(name)
        if not any(is_live(x) for x in tensors((args, kwargs))):
            return func(*args, **kwargs)
        rule = self.rules.get(name)
        if rule is not None:
            return self._noted(self._call, rule(self, func, args, kwargs))
        out = func(*args, **kwargs)
        if name in self.linear or not any(x.is_floating_point() or x.is_complex() for x in tensors(out)):
            return self._routed(out)
        raise UnknownOperation(
            f"{name} in {self.path[-1] or 'the network'} has no rule that makes it linear. Give one: "
            f"rules={{'{name}': rule}} (see attribution/rules.py), or use integrated gradients (--method ig)."
        )

    def _begin(self, name: str) -> None:
        """Another call of an operation where we are; every call counts, live or not, so that keys do not shift."""
        place = (self.path[-1], name)
        self._call, self._held = (*place, self._counts[place]), 0
        self._counts[place] += 1

    def _noted(self, call: tuple[str, str, int], out: Any) -> Any:
        """Remember which autograd node a call's result belongs to."""
        if not self.replaying:
            live = [x.grad_fn for x in tensors(out) if is_live(x)]
            if live:
                self.tape.results[call] = live[0]
        return out

    def _routed(self, out: Any) -> Any:
        """Indices and masks that depend on live values stay those of the clean pass."""
        if isinstance(out, Tensor) and not out.is_floating_point() and not out.is_complex():
            kept = self.held("routing", lambda: out)
            return out if kept is None else kept
        return out

    @contextmanager
    def inside(self, operation: str) -> Iterator[None]:
        """The operations of an explicit twin: keyed as if the operation were a module of its own."""
        self.path.append(f"{self.path[-1]}>{operation}{self._call[2]}")
        try:
            with self:
                yield
        finally:
            self.path.pop()

    @contextmanager
    def running(self) -> Iterator["Freeze"]:
        """The mode, with module paths followed, and activation modules taken as one operation each."""
        with ExitStack() as stack:
            for path, m in self.module.named_modules():
                enter = m.register_forward_pre_hook(lambda *_, path=path: self.path.append(path))
                leave = m.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
                if is_activation(m):
                    m.forward = self._as_one(m.forward)
                    stack.callback(m.__dict__.pop, "forward")
            stack.enter_context(self)
            yield self

    def _leave(self) -> None:
        self.path.pop()

    def _as_one(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """An elementwise module's forward as one activation, whatever it is made of."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._begin("activation")
            self.paused = True
            try:
                if not is_live(args[0]):
                    return forward(*args, **kwargs)
                return self._noted(self._call, self.rules["gelu"](self, forward, args, kwargs))
            finally:
                self.paused = False

        return run


ACTIVATION = re.compile("gelu|silu|swish|activation|mish|relu", re.IGNORECASE)


def is_activation(module: nn.Module) -> bool:
    """A module without parameters or children that is named like an elementwise activation."""
    bare = next(module.parameters(), None) is None and next(module.children(), None) is None
    return bare and ACTIVATION.search(type(module).__name__) is not None


def operation_name(func: Any) -> str:
    """`add` for torch.add, Tensor.add_, Tensor.__add__ and Tensor.__iadd__ alike."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f"get_{getattr(getattr(func, '__self__', None), '__name__', 'attribute')}"
    if name.startswith("__") and name.endswith("__"):
        plain = name.strip("_")
        return IN_PLACE.get(plain, plain)
    return name.strip("_")


IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "radd": "add", "rmul": "mul",
            "truediv": "div", "rtruediv": "rdiv", "rsub": "rsub", "ipow": "pow"}  # fmt: skip


def tensors(box: Any) -> Iterator[Tensor]:
    if isinstance(box, Tensor):
        yield box
    elif isinstance(box, Mapping):
        for item in box.values():
            yield from tensors(item)
    elif isinstance(box, (tuple, list)):
        for item in box:
            yield from tensors(item)


def is_live(x: Any) -> bool:
    """Whether it depends on a leaf. Parameters of a network under study need no gradient."""
    return isinstance(x, Tensor) and x.requires_grad
