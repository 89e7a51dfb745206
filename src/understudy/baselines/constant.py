"""Ablations as dictionaries without latents: zero, mean, mean at each position, and another sequence's activations."""

from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary
from understudy.core.latents import Encoded, Latents, LinearPre
from understudy.core.records.errors import NeedsRecording
from understudy.core.site import Site


class Constant(Dictionary):
    """Writes the same vector at every place of one site."""

    kind: ClassVar[str] = "constant"

    def __init__(self, site: Site, value: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.reads = self.writes = (site,)
        self.n_latents = 0
        self.register_buffer("value", value)

    value: Tensor

    @classmethod
    def zero(cls, site: Site, sample: Acts) -> Self:
        return cls(site, torch.zeros_like(sample[site][0]))

    @classmethod
    def mean(cls, site: Site, sample: Acts) -> Self:
        """The mean over rows [n, d] of the sample."""
        return cls(site, sample[site].double().mean(0).to(sample[site].dtype))

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        x = acts[self.reads[0]]
        nothing = LinearPre(x, x.new_zeros(0, x.shape[-1]), x.new_zeros(0))
        return Encoded(Latents.none(tuple(x.shape[:-1]), x), nothing)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: self.value.new_zeros(*z.shape, len(self.value))}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.value.new_zeros(0, len(self.value))}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: self.value.expand(acts[self.reads[0]].shape)}


class PositionMean(Constant):
    """Writes the mean at each position; beyond the last position seen, the mean over all."""

    kind: ClassVar[str] = "position_mean"
    scope = "sequence"

    def __init__(self, site: Site, table: Float[Tensor, "pos d"], overall: Float[Tensor, " d"]) -> None:
        super().__init__(site, overall)
        self.register_buffer("table", table)

    table: Tensor

    @classmethod
    def fit(cls, site: Site, acts: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"] | None = None) -> Self:
        """Means over the places that count; a position where none does gets the mean over all."""
        x = acts.double()
        if mask is None or bool(mask.all()):
            return cls(site, x.mean(0).to(acts.dtype), x.mean((0, 1)).to(acts.dtype))
        x, n = x.masked_fill(~mask[..., None], 0), mask.sum(0)[:, None]
        overall = x.sum((0, 1)) / n.sum()
        table = torch.where(n > 0, x.sum(0) / n.clamp(min=1), overall)
        return cls(site, table.to(acts.dtype), overall.to(acts.dtype))

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        x = acts[self.reads[0]]
        known = self.table[: x.shape[1]]
        beyond = self.value.expand(x.shape[1] - len(known), -1)
        return {self.writes[0]: torch.cat([known, beyond]).expand(x.shape)}


class Resample(Dictionary):
    """Writes what a clean pass over other sequences held at the same places: run with a recording of the others.

    A latent for each dimension of the site; its value is what the other sequence held there.
    """

    kind: ClassVar[str] = "resample"
    scope = "sequence"

    def __init__(self, site: Site, width: int) -> None:
        super().__init__()
        self.reads = self.writes = (site,)
        self.n_latents = width
        self.register_buffer("eye", torch.eye(width))

    eye: Tensor

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        if ctx.clean is None:
            raise NeedsRecording("resample ablation needs a recording of the sequences to take activations from.")
        other = ctx.clean[self.writes[0]]
        return Encoded(Latents.from_dense(other), LinearPre(other, self.eye, self.eye.new_zeros(self.n_latents)))

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: z.dense()}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.eye[ids]}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: torch.zeros_like(acts[self.reads[0]])}
