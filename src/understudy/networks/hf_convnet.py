"""Classifiers of pictures of transformers whose maps change in size: convolutions, stages of attention."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.network import Calls, NamedSite, Neurons, Part
from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadInput, WrongShape
from understudy.core.site import Site
from understudy.core.tap import Tap
from understudy.networks._feature_maps import Called, axes_of, calls, find_blocks, pairs, pointwise
from understudy.networks._images import ImageClassifier, ImageSource

SMALL = 64
"""Pixels from which on the other size is the half, below it the double."""


class HFConvNet(ImageClassifier):
    """Any `AutoModelForImageClassification` that reads pictures of several sizes.

    Places are positions of a map; which axes they are is seen by feeding pictures of another size. Sites are `conv.N`
    (outputs of convolutions), `resid.N` (of blocks), `mlp_in.N` and `mlp_out.N` (an MLP that acts at each place alone,
    tried by changing one place) and `pooled` (what the head reads); all in the order of the forward pass.
    """

    def __init__(
        self, module: nn.Module, name: str, images: ImageSource | None = None, picture: PictureInput | None = None
    ) -> None:
        """images: what it runs on where a command names no data of its own; picture: how it reads one.

        Raises BadInput for a network that reads pictures of one size only, or keeps no map.
        """
        super().__init__(module, name)
        self.config: Any = module.config
        self.images, self.picture = images, picture
        self._calls = calls(module, lambda: self.forward(self.example()))
        self._others = self._calls_elsewhere()
        self._blocks = [b for b in find_blocks(module, self._calls) if b in self._calls]
        both = [(c, self._others[p]) for p, c in self._calls.items() if p in self._others]
        if not any({"y", "pos"} & set(axes_of(c.writes, other.writes) or ()) for c, other in both):
            raise BadInput(f"{name} ({type(module).__name__}) keeps no map whose size goes with that of the picture.")

    def _calls_elsewhere(self) -> dict[str, Called]:
        """The calls for pictures of another size, and so other places."""
        high, wide = self.size
        self._other_size = (high // 2, wide // 2) if min(self.size) >= SMALL else (2 * high, 2 * wide)
        try:
            return calls(self.module, lambda: self.forward(self.noise(self._other_size)))
        except (RuntimeError, ValueError, AssertionError) as error:
            sizes = " and ".join(f"{h} x {w}" for h, w in (self.size, self._other_size))
            raise BadInput(
                f"{self.name} ({type(self.module).__name__}) does not read pictures of {sizes}, so it cannot be seen "
                f"which axes are places ({str(error).splitlines()[0]})."
            ) from None

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        shape = tuple(value.shape)
        found = axes_of(shape, self._elsewhere(site))
        if found is None:
            raise WrongShape(
                f"{site} holds a tensor {shape} for {self.size} pixels and {self._elsewhere(site)} for "
                f"{self._other_size}: it has no axes of batch, place and features that a dictionary could use."
            )
        return found, "depth"

    @torch.no_grad()
    def _elsewhere(self, site: Site) -> tuple[int, ...]:
        """The shape at a site for pictures of the other size."""
        called = self._others.get(site.module)
        if called is not None and site.port in ("in", "out"):
            return called.reads if site.port == "in" else called.writes
        with Tap(self.module, [site]) as tap:
            self.forward(self.noise(self._other_size))
        return tuple(tap.calls(site)[0].shape)

    # -- sites and parts --------------------------------------------------------------------------------------------

    @cached_property
    def _mlps(self) -> list[tuple[str, str]]:
        """First and last matrix of every MLP that acts at each place alone."""
        larger = self._calls if self._other_size < self.size else self._others
        found = [pair for block in self._blocks for pair in pairs(self.module, larger, block)]
        ends = [(Site(first, "in"), Site(last)) for first, last in found]
        return [p for p, (a, b) in zip(found, ends, strict=True) if self._fits(a) and self._is_alone(a, b)]

    @torch.no_grad()
    def _is_alone(self, read: Site, write: Site) -> bool:
        """Whether a change at one place of `read` changes `write`, and only there."""
        batch = self.example()
        self.probe([read, write])
        before = self.record(batch, [read, write])
        rows = before[read].clone()
        place = (slice(None), *(0 for _ in rows.shape[1:-1]))
        rows[place] = 2 * rows.flatten(1, -2).mean(1) - 3 * rows[place] + 1
        with self.edited({read: lambda value, call: self.value(read, rows)}):
            after = self.record(batch, [write])[write]
        change = (after - before[write]).abs().amax((0, -1))
        there = change[place[1:]].clone()
        change[place[1:]] = 0
        return bool(there > 0 and change.max() <= 1e-4 * there)

    @cached_property
    def _named(self) -> tuple[NamedSite, ...]:
        names: dict[str, Site] = {}
        firsts, lasts = ([pair[i] for pair in self._mlps] for i in (0, 1))
        n_conv = 0
        if self._blocks:
            names["embed"] = Site(self._blocks[0], "in")
        for path in self._calls:
            if isinstance(self.module.get_submodule(path), (nn.Conv1d, nn.Conv2d)) and path not in (*firsts, *lasts):
                names[f"conv.{n_conv}"] = Site(path)
                n_conv += 1
            if path in firsts:
                names[f"mlp_in.{firsts.index(path)}"] = Site(path, "in")
            if path in lasts:
                names[f"mlp_out.{lasts.index(path)}"] = Site(path)
            if path in self._blocks:
                names[f"resid.{self._blocks.index(path)}"] = Site(path)
        head = next((n for n, _ in self.module.named_children() if n == "classifier" and n in self._calls), None)
        if head is not None:
            names["pooled"] = Site(head, "in")
        usable = {n: s for n, s in names.items() if self._fits(s)}
        self.probe(usable.values())
        return tuple(NamedSite(name, site, self.layout(site)) for name, site in usable.items())

    def _fits(self, site: Site) -> bool:
        here, there = self._calls[site.module], self._others.get(site.module)
        if there is None:
            return False
        shapes = (here.reads, there.reads) if site.port == "in" else (here.writes, there.writes)
        return axes_of(*shapes) is not None

    def named_sites(self) -> tuple[NamedSite, ...]:
        return self._named

    def parts(self) -> tuple[Part, ...]:
        return tuple(
            Part(f"mlp.{i}", Site(first, "in"), Site(last), (first, last)) for i, (first, last) in enumerate(self._mlps)
        )

    @torch.no_grad()
    def neurons(self, part: Part) -> Neurons | None:
        path = part.write.module
        module = self.module.get_submodule(path)
        W, bias, site = pointwise(module), getattr(module, "bias", None), Site(path, "in")
        if W is None:
            return None
        values = self.record(self.example(), [site, part.write])
        written = values[site].float() @ W.float() + (0.0 if bias is None else bias.float())
        target = values[part.write].float()
        tolerance = 1e-2 if torch.finfo(W.dtype).eps > 1e-5 else 1e-4
        close = (written - target).abs().max() <= tolerance * target.abs().max().clamp(min=1e-6)
        return Neurons(site, W, bias) if close else None
