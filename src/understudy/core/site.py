"""Site: the name of a place in a network where an activation can be read or replaced."""

from dataclasses import dataclass
from typing import Literal

from understudy.core.records.errors import UnknownName

INPUTS = "inputs"
"""Pseudo-module of the network's own inputs: `inputs:input_ids`."""


@dataclass(frozen=True, order=True)
class Site:
    """A module's input or output, e.g. `model.layers.3.mlp:in`. Identity only: what it holds is the network's `layout`.

    `Site.parse(str(site)) == site` for every site.
    """

    module: str
    """Dotted path in `module.named_modules()`; empty for the root; `inputs` for the network's inputs."""
    port: str = "out"
    """`in` or `out`: the first floating tensor there. `out.1`, `in.hidden_states` name another one by its path.
    For the pseudo-module `inputs`, the name of the input."""
    call: int | None = None
    """Which call of the module within one forward pass; None means every call."""

    def __post_init__(self) -> None:
        if ":" in self.port or "#" in self.port or not self.port:
            raise UnknownName(f"{self.port!r} cannot be a port: use 'in', 'out' or a path such as 'out.1'.")
        if not self.is_input and self.port.split(".")[0] not in ("in", "out"):
            raise UnknownName(
                f"{self.port!r} is not a port of module {self.module!r}. Ports start with 'in' or 'out'; "
                f"'out.1' names the second element of an output, 'in.mask' a keyword input."
            )

    @property
    def is_input(self) -> bool:
        return self.module == INPUTS and self.port.split(".")[0] not in ("in", "out")

    @property
    def direction(self) -> Literal["in", "out"]:
        return self.port.split(".")[0]  # pyright: ignore[reportReturnType]

    @property
    def path(self) -> tuple[str, ...]:
        """Steps from the module's input or output to the tensor; empty means the first floating tensor."""
        return tuple(self.port.split(".")[1:])

    def __str__(self) -> str:
        return f"{self.module}:{self.port}" + ("" if self.call is None else f"#{self.call}")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Inverse of `str`. A bare module path means its output."""
        where, hashed, call = text.partition("#")
        module, colon, port = where.rpartition(":")
        if not colon:
            module, port = where, "out"
        if hashed and not call.isdecimal():
            raise UnknownName(f"{text!r}: the call index after '#' must be a whole number.")
        return cls(module, port, int(call) if call else None)
