"""Network: a module, its inputs, where its sites are and what its behaviour is. One adapter file for each family."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.core import costs
from understudy.core.batch import Batch, Sequences
from understudy.core.picture import PictureInput
from understudy.core.records.errors import (
    ActivationOverwritten,
    SiteError,
    UnderstudyError,
    UnknownName,
    WrongShape,
)
from understudy.core.records.metric import NotMeasured
from understudy.core.site import Site
from understudy.core.tap import Tap, find, get

Calls = Literal["once", "time", "depth"]


@dataclass(frozen=True)
class Layout:
    """How a site's tensor is laid out. Axis names: `batch`, `pos`, `time`, `y`, `x`, `head`, `d` (features), and `row`
    where the network has flattened batch and places into one axis (batch first)."""

    axes: tuple[str, ...]
    width: int
    calls: Calls = "once"
    """`time`: each call is one place of a sequence; `depth`: each call is a layer, so a site names its call."""
    n_calls: int = 1

    def rows(self, value: Tensor) -> Float[Tensor, "batch *places d"]:
        """One call's tensor with batch first and features last."""
        if value.dim() != len(self.axes):
            raise WrongShape(f"expected axes {self.axes}, found a tensor {tuple(value.shape)}.")
        return value.permute(self._order())

    def value(self, rows: Float[Tensor, "batch *places d"]) -> Tensor:
        """Inverse of `rows`."""
        order = self._order()
        inverse = [order.index(i) for i in range(len(order))]
        return rows.permute(inverse)

    @property
    def position_axis(self) -> int | None:
        """The axis of `rows` along which a sequence runs, None where there is none."""
        if "row" in self.axes:
            return 1
        inner = [a for a in self.axes if a not in ("batch", "d")]
        return next((1 + inner.index(a) for a in ("pos", "time") if a in inner), None)

    def _order(self) -> list[int]:
        first = [i for i, a in enumerate(self.axes) if a == "batch"]
        last = [i for i, a in enumerate(self.axes) if a == "d"]
        return first + [i for i in range(len(self.axes)) if i not in first + last] + last


@dataclass(frozen=True)
class Part:
    """A module that can be replaced whole: what a transcoder reads and writes."""

    name: str
    """Short name, e.g. `mlp.3`."""
    read: Site
    write: Site
    modules: tuple[str, ...] = ()
    """Paths of what no longer counts once the part is replaced; empty means the module of `write`."""

    @property
    def replaces(self) -> tuple[str, ...]:
        return self.modules or (self.write.module,)


@dataclass(frozen=True)
class Neurons:
    """A part written as its own neurons: activation at `site` @ W + bias = what the part writes."""

    site: Site
    W: Float[Tensor, "n_neurons d_out"]
    bias: Float[Tensor, " d_out"] | None


@dataclass(frozen=True)
class NamedSite:
    """A row of `understudy sites`."""

    name: str
    site: Site
    layout: Layout


class Network:
    """Base of all adapters. A subclass gives `example`, and overrides what its family knows better.

    The module is used as it is, in eval mode, with its parameters frozen.
    """

    family: str = "any"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module.eval().requires_grad_(False), name
        self._clone: set[Site] = set()
        self._layouts: dict[Site, Layout] = {}
        self._same: dict[tuple[Site, ...], list[tuple[Site, Site]]] = {}

    # -- to override ------------------------------------------------------------------------------------------------

    def example(self) -> Batch:
        """A tiny valid batch (at least 2 sequences of at least 3 places) for probing shapes and call counts."""
        raise self._unwritten("example(self) -> Batch", "a tiny valid batch to probe shapes with")

    def named_sites(self) -> tuple[NamedSite, ...]:
        """Sites with short names, in the order of the forward pass."""
        return ()

    def parts(self) -> tuple[Part, ...]:
        """Modules that a transcoder can replace."""
        return ()

    def neurons(self, part: Part) -> Neurons | None:
        """The part's own neurons, verified on the example batch to 1e-4; None where it has none of that form."""
        return None

    def aside(self) -> tuple[str, ...]:
        """Modules whose parameters a share of parameters leaves out: input embeddings and output head."""
        return ()

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        """Axis names of one call's tensor at a site, and what repeated calls mean. Never guessed from rank alone."""
        raise WrongShape(f"{self.name} does not say how {site} with shape {tuple(value.shape)} is laid out.")

    def prepare(self, batch: Batch) -> None:
        """Checks that need forward passes of their own, done once and before anything listens. Raises BadInput."""

    def explicit(self) -> AbstractContextManager[Any]:
        """Inside, fused operations run as verified explicit twins, and their inner sites exist."""
        return nullcontext()

    def loss(self, output: Any, batch: Batch) -> Float[Tensor, "batch ..."] | NotMeasured:
        """Loss in nats at each place that has a target (`batch.targets != -100`), 0 elsewhere."""
        return NotMeasured(not_measured=f"{self.name} has no loss of its own")

    def divergence(self, a: Any, b: Any, batch: Batch) -> Float[Tensor, "batch ..."]:
        """How far output b is from output a at each place; for categorical outputs KL(a || b) in nats."""
        raise self._unwritten("divergence(self, a, b, batch) -> Tensor", "how far two outputs are apart at each place")

    def choice(self, output: Any) -> Tensor | NotMeasured:
        """The discrete choice at each place (top-1 token, action, class), where there is one."""
        return NotMeasured(not_measured=f"{self.name} makes no discrete choice")

    def scores(self, output: Any) -> Float[Tensor, "batch *places n_outputs"]:
        """One number for each possible output (logits, action values); by default the first floating tensor."""
        path = find(output, Site("", "out"), self.module)
        return get(output, path)

    divergence_unit: str = "nats"
    tokenizer: Any = None
    """For networks that read text: turns the data a command names into their inputs."""
    max_context: int = 1 << 20
    """Longest sequence the network was made for."""
    vocab_size: int = 0
    """Number of token ids, for networks that have them."""
    unsure_writes: frozenset[int] = frozenset()
    """Blocks of which it is not known what their parts add to the stream: the part's own output, or a norm behind."""
    picture: PictureInput | None = None
    """For networks that read pictures: how one becomes what they read."""
    opening: int | None = None
    """Token id that every row of text should begin with (beginning of sequence). None: rows begin anywhere."""

    def sequences(self, split: str) -> Sequences | None:
        """What a network without a tokenizer runs on, for split "train" and "held_out". None: it reads text."""
        return None

    def n_before(self, inputs: Mapping[str, Any]) -> int:
        """How many places of the sequence came before this forward pass and are only in a cache; 0 without one."""
        return 0

    def generate(self, prompts: Tensor, n_new: int, seed: int) -> Tensor | NotMeasured:
        """Prompts [batch, pos] continued by n_new tokens; the same seed gives the same random numbers."""
        return NotMeasured(not_measured=f"{self.name} does not generate")

    def returns(self, n: int, seed: int, random: bool = False) -> Float[Tensor, " n"] | NotMeasured:
        """What n episodes earn in the environment that the network acts in, in its units; random: with random actions.

        The same seed gives the same beginnings and random numbers to every call.
        """
        return NotMeasured(not_measured=f"{self.name} acts in no environment")

    def logit_effects(self, directions: Float[Tensor, "m d"]) -> Float[Tensor, "m outputs"] | None:
        """What one unit of each direction adds to the outputs directly; None if there is no such path."""
        return None

    # -- implemented once -------------------------------------------------------------------------------------------

    def _unwritten(self, method: str, what: str) -> UnderstudyError:
        return UnderstudyError(
            f"{type(self).__name__} has no {method.partition('(')[0]}: write the method {method}, {what}, or wrap the "
            "module with AnyModule, which takes it as an argument. See docs/guide/own-network.md."
        )

    def forward(self, batch: Batch) -> Any:
        """The module's own output."""
        return self.module(**batch.inputs)

    def __call__(self, batch: Batch) -> Any:
        return self.forward(batch)

    @property
    def device(self) -> torch.device:
        """Where the module is, and so where batches go. A module in several places: where its first parameter is."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move the module; returns the network."""
        self.module.to(device)
        return self

    def layout(self, site: Site) -> Layout:
        """Axes, width and call count of a site, found by one probe forward. Raises for sites that do not exist."""
        if site not in self._layouts:
            self.probe([site])
        return self._layouts[site]

    def width(self, site: Site) -> int:
        return self.layout(site).width

    @torch.no_grad()
    def probe(self, sites: Iterable[Site]) -> None:
        """Learn the layouts of many sites in one forward pass."""
        todo = [s for s in dict.fromkeys(sites) if s not in self._layouts and not s.is_input]
        if not todo:
            return
        batch = self.example()
        with Tap(self.module, todo, clone=True) as tap:
            self.forward(batch)
        for site in todo:
            values = tap.calls(site)
            axes, calls = self.axes(site, values[0])
            if len(values) == 1 or site.call is not None:
                calls = "once"
            elif calls == "once":
                raise SiteError(
                    f"{site} is called {len(values)} times in one forward pass and {self.name} does not say whether "
                    f"calls are time or depth. Name one call, e.g. {site}#0."
                )
            elif calls == "depth":
                raise SiteError(f"{site} is called {len(values)} times in depth: name the layer, e.g. {site}#0.")
            self._layouts[site] = Layout(axes, values[0].shape[axes.index("d")], calls, len(values))

    @torch.no_grad()
    def same_tensor(self, sites: Iterable[Site]) -> list[tuple[Site, Site]]:
        """Pairs of sites that are two names of one tensor, such as a block's output and the next one's input.

        Found by identity of memory in one forward pass on the example.
        """
        inside = tuple(dict.fromkeys(s for s in sites if not s.is_input))
        if inside not in self._same:
            seen: dict[tuple[int, int, int], Site] = {}
            self._same[inside] = []
            with suppress(ActivationOverwritten), Tap(self.module, inside) as tap:
                self.forward(self.example())
                for site in inside:
                    for value in tap.calls(site):
                        first = seen.setdefault((value.data_ptr(), value.numel(), value._version), site)
                        if first != site:
                            self._same[inside].append((first, site))
        return self._same[inside]

    def record(self, batch: Batch, reads: Iterable[Site], *, stop: bool = True) -> dict[Site, Tensor]:
        """Activations at `reads`, each [batch, *places, d], from one forward pass that ends at the last of them.

        A module called over time gives [batch, time, d].
        """
        calls = self.record_calls(batch, reads, stop=stop)
        return {s: self.stack(s, v, batch.n_sequences) for s, v in calls.items()}

    @torch.no_grad()
    def record_calls(self, batch: Batch, reads: Iterable[Site], *, stop: bool = True) -> dict[Site, list[Tensor]]:
        """Like `record`, one raw tensor for each call."""
        reads = tuple(dict.fromkeys(reads))
        inside = [s for s in reads if not s.is_input]
        self.probe(inside)
        self.prepare(batch)
        out = {s: [self.input(batch, s)] for s in reads if s.is_input}
        if not inside:
            return out
        over_time = any(self._layouts[s].calls == "time" for s in inside)
        stops = None if over_time or not stop else dict.fromkeys(inside, 1)
        try:
            with Tap(self.module, inside, stop_after=stops, clone=bool(self._clone & set(inside))) as tap:
                self.forward(batch)
        except ActivationOverwritten:
            self._clone |= set(inside)
            return self.record_calls(batch, reads, stop=stop)
        return out | {s: tap.calls(s) for s in inside}

    def stack(self, site: Site, values: list[Tensor], n_sequences: int) -> Tensor:
        """One tensor [batch, *places, d] from a site's calls; calls over time become the second axis."""
        if site.is_input:
            return values[0]
        rows = [self.rows(site, v, n_sequences) for v in values]
        return torch.stack(rows, 1) if self.layout(site).calls == "time" else rows[0]

    def rows(self, site: Site, value: Tensor, n_sequences: int) -> Float[Tensor, "batch *places d"]:
        """One call's tensor with batch first and features last; places that the module flattened are unfolded."""
        layout = self.layout(site)
        rows = layout.rows(value)
        return rows.unflatten(0, (n_sequences, -1)) if "row" in layout.axes else rows

    def value(self, site: Site, rows: Float[Tensor, "batch *places d"]) -> Tensor:
        """Inverse of `rows`: the tensor as the module made it."""
        layout = self.layout(site)
        return layout.value(rows.flatten(0, -2) if "row" in layout.axes else rows)

    def input(self, batch: Batch, site: Site) -> Tensor:
        if site.port not in batch.inputs:
            raise UnknownName.among("input", site.port, batch.inputs)
        return batch.inputs[site.port]

    def share_of_parameters(self, paths: Iterable[str]) -> float:
        """Share of the network's parameters that lie in these modules. Parameters of `aside()` (input embeddings and
        the output head, tied or not) count neither above nor below the line; tied parameters count once."""
        return costs.share_of_parameters(self.module, paths, self.aside())

    def share_of_compute(self, paths: Iterable[str], batch: Batch | None = None) -> float:
        """Share of the FLOPs of one whole forward pass, output head included, that these modules spend.

        Matrix products, convolutions and attention only, on `batch` (default: the example, whose short sequences make
        attention look cheaper than it is on long ones). Raises BadInput where none of the network's work is counted.
        """
        return costs.share_of_compute(self, paths, batch or self.example())

    @contextmanager
    def edited(self, edits: Mapping[Site, Any]) -> Iterator[Tap]:
        """Every forward pass inside, `generate` included, runs with these edits."""
        with Tap(self.module, edits=edits) as tap:
            yield tap

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.module.parameters())
        return f"{type(self).__name__}({self.name!r}, {n / 1e6:.2f}M parameters, {len(self.named_sites())} named sites)"
