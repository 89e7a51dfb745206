"""AnyModule: the adapter for a module of your own. It says what to feed, how activations are laid out, what matters.

AnyModule(policy, example=Batch({"obs": obs}), axes={"conv*": ("batch", "d", "y", "x"), "*": ("batch", "d")},
          divergence=kl_of_actions, divergence_unit="nats")
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from understudy.core.batch import Batch, Sequences
from understudy.core.costs import unfused
from understudy.core.network import Calls, NamedSite, Network, Part
from understudy.core.records.errors import BadInput, UnderstudyError, WrongShape
from understudy.core.records.metric import NotMeasured
from understudy.core.site import Site
from understudy.networks._structure import block_paths

Axes = tuple[str, ...]
AXES = ("batch", "pos", "time", "y", "x", "head", "row", "d")


class AnyModule(Network):
    """A network from a module, an example batch and the layout of its sites.

    The outputs of the largest stack's blocks are named `block.0`, `block.1`, ...; every module path is a site as well.
    Without a divergence, outputs are compared by their mean squared difference.
    """

    family = "module"

    def __init__(
        self,
        module: nn.Module,
        example: Batch,
        axes: Axes | Mapping[str, Axes],
        *,
        name: str | None = None,
        calls: Calls = "once",
        loss: Callable[[Any, Batch], Tensor] | None = None,
        divergence: Callable[[Any, Any, Batch], Tensor] | None = None,
        divergence_unit: str | None = None,
        choice: Callable[[Any], Tensor] | None = None,
        sites: Mapping[str, Site | str] | None = None,
        parts: Sequence[Part] = (),
        aside: Sequence[str] = (),
        forward: Callable[[nn.Module, Mapping[str, Tensor]], Any] | None = None,
        sequences: Callable[[str], Sequences] | None = None,
    ) -> None:
        """example: a tiny valid batch, at least 2 sequences; its inputs are keyword arguments of the module's forward.
        axes: names for every site, or by glob over `module.path:port`, first match wins. An axis is
        called batch, pos, time, y, x, head, row (batch and places in one) or d (features).
        calls: what it means when a module is called more than once in a pass: "time" (each call is a place of a
        sequence) or "depth" (each call is a layer).
        loss(output, batch), divergence(a, b, batch): per place, [batch, *places]; nats unless `divergence_unit` says.
        sites, parts: short names of your own. aside: input embeddings and heads, left out of shares of parameters.
        forward(module, inputs): how to run it, if not `module(**inputs)`.
        sequences(split): what `train` and `evaluate` run it on, for split "train" and "held_out".
        """
        super().__init__(module, name or type(module).__name__)
        self._example, self._loss, self._divergence = example, loss, divergence
        self._choice, self._forward, self._aside, self._parts = choice, forward, tuple(aside), tuple(parts)
        self._calls: Calls = calls
        self._sequences = sequences
        self._axes: Mapping[str, Axes] = {"*": axes} if isinstance(axes, tuple) else axes
        for glob, names in self._axes.items():
            if not set(names) <= set(AXES) or names.count("d") != 1 or not {"batch", "row"} & set(names):
                raise BadInput(
                    f"axes {glob!r}: {names} should name each axis from {', '.join(AXES)}, with 'batch' and "
                    "exactly one 'd' (features)."
                )
        given = {k: Site.parse(v) if isinstance(v, str) else v for k, v in (sites or {}).items()}
        self._sites = given or {f"block.{i}": Site(path) for i, path in enumerate(block_paths(module))}
        unit = "nats" if divergence is not None else "mean squared difference"
        self.divergence_unit = divergence_unit or unit
        self._may_fuse = any(
            isinstance(m, (nn.TransformerEncoderLayer, nn.MultiheadAttention)) for m in module.modules()
        )
        self._named: tuple[NamedSite, ...] | None = None
        self._given = bool(given)

    def sequences(self, split: str) -> Sequences | None:
        return None if self._sequences is None else self._sequences(split)

    def example(self) -> Batch:
        return self._example

    def forward(self, batch: Batch) -> Any:
        with unfused() if self._may_fuse else nullcontext():
            return super().forward(batch) if self._forward is None else self._forward(self.module, batch.inputs)

    def axes(self, site: Site, value: Tensor) -> tuple[Axes, Calls]:
        for glob, names in self._axes.items():
            if fnmatchcase(str(site), glob) or fnmatchcase(site.module, glob):
                if len(names) != value.dim():
                    raise WrongShape(
                        f"{site} holds a tensor {tuple(value.shape)}, but axes {glob!r} names {len(names)}: {names}. "
                        f"Give AnyModule(axes={{{site.module!r}: (...), ...}}) a line for it."
                    )
                return names, self._calls
        raise WrongShape(
            f"no axes are given for {site}, shape {tuple(value.shape)}. "
            f"Give AnyModule(axes={{{site.module!r}: (...), ...}}) a line for it."
        )

    def named_sites(self) -> tuple[NamedSite, ...]:
        if self._named is None:
            self._named = tuple(row for name, site in self._sites.items() if (row := self._row(name, site)))
        return self._named

    def _row(self, name: str, site: Site) -> NamedSite | None:
        try:
            return NamedSite(name, site, self.layout(site))
        except UnderstudyError:
            # Blocks that the finder guessed may hold other shapes; sites that were given must fit.
            if self._given:
                raise
            return None

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def aside(self) -> tuple[str, ...]:
        return self._aside

    def loss(self, output: Any, batch: Batch) -> Tensor | NotMeasured:
        return super().loss(output, batch) if self._loss is None else self._loss(output, batch)

    def divergence(self, a: Any, b: Any, batch: Batch) -> Tensor:
        if self._divergence is not None:
            return self._divergence(a, b, batch)
        x, y = first_tensor(a).float(), first_tensor(b).float()
        squared = (x - y).square()
        # Places are what the mask has axes for; without one, sequences.
        n_places = 1 if batch.mask is None else batch.mask.dim()
        return squared if squared.dim() <= n_places else squared.flatten(n_places).mean(-1)

    def choice(self, output: Any) -> Tensor | NotMeasured:
        return super().choice(output) if self._choice is None else self._choice(output)


def first_tensor(output: Any) -> Tensor:
    """The first floating tensor of an output, nested or not."""
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output
    for item in items:
        if isinstance(item, (Tensor, Mapping, tuple, list)) and not (
            isinstance(item, Tensor) and not item.is_floating_point()
        ):
            return first_tensor(item)
    raise BadInput("the output holds no floating tensor: give AnyModule a divergence(a, b, batch).")
