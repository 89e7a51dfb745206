"""LinearDictionary: the arithmetic that SAEs, transcoders, crosscoders, CLT layers and PCA share.

    z = sparsity( W_enc (norm_in(x) [- b_dec]) + b_enc )      y = norm_out^-1( W_dec^T z + b_dec [+ W_skip x] )

Several read sites are concatenated into one x, several written sites into one y; a shelf file adds its initialisation
and its constraints.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, DictionarySpec, Group, Linearised
from understudy.core.latents import Encoded, Latents, LinearPre, Pattern, Search
from understudy.core.network import Network
from understudy.core.records.errors import UnderstudyError, WrongShape
from understudy.core.site import Site
from understudy.core.sparsity import Also, Norms, Plain, Sparsity

Widths = Mapping[Site, int]


Spans = Literal["site", "sites", "part", "parts", "linears"]
"""What one group covers of what training is asked for."""


class LinearDictionary(Dictionary):
    """Parameters: `W_enc` [n_latents, d_in], `b_enc` [n_latents], `W_dec` [n_latents, d_out], `b_dec` [d_out] or None
    (a group's member), `W_skip` [d_in, d_out] or None. Rows of W_enc and W_dec belong to latents.

    Buffers `in_center, in_scale, out_center, out_scale`: the typed normalisation, x_n = (x - center) / scale.
    """

    kind: ClassVar[str] = "linear"
    subtracts_b_dec: ClassVar[bool] = False
    """True if the encoder reads `x - b_dec` (an SAE: d_in = d_out)."""
    search: Search = "fp32"
    """How the k largest pre-activations are found."""
    spans: ClassVar[Spans] = "site"
    """What one group covers of the sites, parts or Linears that training is asked for: each alone, or all together."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Fields of a training configuration that follow from the kind; other values are refused."""
    usual: ClassVar[Mapping[str, Any]] = {}
    """The kind's own defaults for others."""

    def __init__(
        self,
        reads: Widths,
        writes: Widths,
        sparsity: Sparsity,
        arrays: Mapping[str, Tensor],
    ) -> None:
        """`arrays`: W_enc, b_enc, W_dec, and where there are any b_dec, W_skip and the four normalisation buffers."""
        super().__init__()
        self.reads, self.writes = tuple(reads), tuple(writes)
        self.d_reads, self.d_writes = list(reads.values()), list(writes.values())
        d_in, d_out = sum(self.d_reads), sum(self.d_writes)
        self.n_latents = arrays["W_enc"].shape[0]
        wanted = {
            "W_enc": (self.n_latents, d_in), "b_enc": (self.n_latents,), "W_dec": (self.n_latents, d_out),
            "b_dec": (d_out,), "W_skip": (d_in, d_out), "in_center": (d_in,), "in_scale": (d_in,),
            "out_center": (d_out,), "out_scale": (d_out,),
        }  # fmt: skip
        for name, shape in wanted.items():
            if name in arrays and tuple(arrays[name].shape) != shape:
                raise WrongShape(
                    f"{name} is {tuple(arrays[name].shape)}, but {type(self).__name__} reading "
                    f"{dict(zip(map(str, reads), self.d_reads))} needs {shape}."
                )
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
            self.register_parameter(name, nn.Parameter(arrays[name].detach().clone()) if name in arrays else None)
        plain = {"in_center": torch.zeros(d_in), "in_scale": torch.ones(d_in)}
        plain |= {"out_center": torch.zeros(d_out), "out_scale": torch.ones(d_out)}
        for name, default in plain.items():
            self.register_buffer(name, arrays.get(name, default.to(self.W_enc)).detach().clone())
        self.sparsity = sparsity

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        raise UnderstudyError(f"{cls.__name__} is fitted, not trained.")

    @classmethod
    def begin(
        cls,
        network: Network,
        reads: Sequence[Site],
        writes: Sequence[Site],
        n_latents: int,
        sparsity: Sparsity,
        sample: Acts,
        seed: int,
    ) -> Self:
        """Begin training on a network. A kind that starts from its weights overrides this, any other `start`."""
        return cls.start(reads, writes, n_latents, sparsity, sample, seed)

    @classmethod
    def group(cls, members: "Sequence[LinearDictionary]", sample: Acts) -> Group:
        """Members that are trained together, as a group at its starting point."""
        return Group(members)

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter | None
    W_skip: nn.Parameter | None
    in_center: Tensor
    in_scale: Tensor
    out_center: Tensor
    out_scale: Tensor

    def _input(self, acts: Acts) -> Float[Tensor, "*places d_in"]:
        for site, d in zip(self.reads, self.d_reads, strict=True):
            if acts[site].shape[-1] != d:
                raise WrongShape(
                    f"the dictionary reads d={d} at {site} but the network gives d={acts[site].shape[-1]}. "
                    "Was it trained on another network?"
                )
        x = torch.cat([acts[s] for s in self.reads], -1) if len(self.reads) != 1 else acts[self.reads[0]]
        return (x.to(self.W_enc.dtype) - self.in_center) / self.in_scale

    def _split(self, y: Float[Tensor, "*places d_out"]) -> dict[Site, Tensor]:
        return dict(zip(self.writes, y.split(self.d_writes, -1), strict=True))

    def pre(self, acts: Acts) -> LinearPre:
        x = self._input(acts)
        if self.subtracts_b_dec and self.b_dec is not None:
            x = x - self.b_dec
        return LinearPre(x, self.W_enc, self.b_enc, self.search)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        pre = self.pre(acts)
        return Encoded(self.sparsity(pre), pre)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return self._split(z.decode(self.W_dec) * self.out_scale)

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        places = acts[self.reads[0]].shape[:-1]
        y = torch.zeros_like(self.out_center) if self.b_dec is None else self.b_dec
        if self.W_skip is not None:
            y = y + self._input(acts) @ self.W_skip
        return self._split((y * self.out_scale + self.out_center).expand(*places, -1))

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return self._split(self.W_dec[ids] * self.out_scale)

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        ids, index = z.ids.unique(return_inverse=True)
        W = self.W_enc[ids]
        offset = self.in_center / self.in_scale
        if self.subtracts_b_dec and self.b_dec is not None:
            offset = offset + self.b_dec
        rows = dict(zip(self.reads, (W / self.in_scale).split(self.d_reads, -1), strict=True))
        return Linearised(rows, self.b_enc[ids] - W @ offset, index)

    def restrict(self, ids: Int[Tensor, " m"]) -> "RestrictedLinear":
        return RestrictedLinear(self, ids)

    @torch.no_grad()
    def folded(self) -> Self:
        """The same map with the normalisation folded into the weights: identity buffers, raw units throughout.

        An SAE with one scale keeps unit-norm decoder rows (its latents take the scale), other kinds scale W_dec.
        """
        s_in, s_out = self.in_scale, self.out_scale
        arrays: dict[str, Tensor] = {}
        if self.subtracts_b_dec:
            same = torch.equal(s_in, s_out) and torch.equal(self.in_center, self.out_center)
            if not same or s_in.unique().numel() != 1 or self.W_skip is not None:
                raise WrongShape(
                    "an SAE is folded with one center and one scale for what it reads and writes, and no skip."
                )
            s = s_in[0]
            assert self.b_dec is not None
            arrays = {"W_enc": self.W_enc, "b_enc": self.b_enc * s, "W_dec": self.W_dec}
            arrays["b_dec"] = self.b_dec * s + self.in_center
            return self._like(arrays, self.sparsity.scaled(s))
        W_enc = self.W_enc / s_in
        arrays = {"W_enc": W_enc, "b_enc": self.b_enc - W_enc @ self.in_center, "W_dec": self.W_dec * s_out}
        b_dec = (self.b_dec if self.b_dec is not None else torch.zeros_like(s_out)) * s_out + self.out_center
        if self.W_skip is not None:
            arrays["W_skip"] = self.W_skip / s_in[:, None] * s_out
            b_dec = b_dec - self.in_center @ arrays["W_skip"]
        if self.b_dec is not None or bool(b_dec.any()):
            arrays["b_dec"] = b_dec
        return self._like(arrays, self.sparsity)

    def _like(self, arrays: Mapping[str, Tensor], sparsity: Sparsity) -> Self:
        reads = dict(zip(self.reads, self.d_reads, strict=True))
        writes = dict(zip(self.writes, self.d_writes, strict=True))
        new = type(self).__new__(type(self))
        LinearDictionary.__init__(new, reads, writes, sparsity, arrays)
        new.is_oracle = self.is_oracle
        new.train(self.training)
        return new

    def with_sparsity(self, sparsity: Sparsity) -> Self:
        return self._like(self.arrays(), sparsity)

    def arrays(self) -> dict[str, Tensor]:
        """Parameters and normalisation, without the sparsity rule's."""
        return {k: v.detach() for k, v in self.state_dict().items() if not k.startswith("sparsity.")}

    @torch.no_grad()
    def thresholded(self, acts: Acts) -> Self:
        """Per-latent thresholds at which each latent fires as often on `acts` as it did under its rule.

        Exact where latents do not compete (JumpReLU, Gated, ReLU), whatever `acts` are. Otherwise:
        The threshold of a latent kept at m of the given places lies halfway between its m-th and (m+1)-th largest
        pre-activation there, and at least at 0; one that was never kept lies just above its maximum (silent there).
        """
        if self.sparsity.is_thresholded:
            plain = self.sparsity.plain()
            return self if plain is None else self._like(self._adjusted(plain), plain.rule.to(self.W_enc.device))
        pre = self.pre(acts)
        kept = self.sparsity(pre).fires()
        return self.with_sparsity(self.sparsity.as_threshold(matching_thresholds(pre, kept)))

    def _adjusted(self, plain: Plain) -> dict[str, Tensor]:
        """Arrays whose pre-activations are `scale * pre + shift`."""
        arrays = self.arrays()
        if plain.scale is not None:
            arrays["W_enc"], arrays["b_enc"] = plain.scale[:, None] * arrays["W_enc"], plain.scale * arrays["b_enc"]
        if plain.shift is not None:
            arrays["b_enc"] = arrays["b_enc"] + plain.shift
        return arrays

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        return self.sparsity.penalty(encoded, norms, dead, done)

    def also(self, encoded: Encoded) -> list[Also]:
        return self.sparsity.also(encoded)

    def after_step(self) -> None:
        self.sparsity.after_step()

    def spec(self) -> DictionarySpec:
        settings: dict[str, Any] = {"sparsity": self.sparsity.settings()}
        settings |= {"d_reads": self.d_reads, "d_writes": self.d_writes}
        arrays = {k: v.detach() for k, v in self.state_dict().items()}
        return DictionarySpec(self.kind, self.reads, self.writes, settings, arrays)


def matching_thresholds(pre: LinearPre, kept: Int[Tensor, " L"]) -> Float[Tensor, " L"]:
    """For each latent the threshold above which exactly `kept` of its pre-activations lie (clamped at 0).

    Latents that fire about equally often are looked at together, so that only their largest values are ranked.
    """
    n_rows = len(pre.x)
    theta_all = torch.empty_like(pre.b)
    for ids in kept.argsort().split(max(1, min(64, (1 << 28) // (4 * max(1, n_rows))))):
        part = LinearPre(pre.x, pre.W[ids], pre.b[ids])
        m = kept[ids, None]
        columns = torch.cat([block for _, block in part.chunks()]).T.contiguous()
        ranked = columns.topk(min(n_rows, int(m.max()) + 1), dim=-1).values
        at_least = ranked.gather(-1, (m - 1).clamp(min=0))
        below = ranked.gather(-1, m.clamp(max=n_rows - 1))
        silent = ranked[:, :1] + 1e-3 * ranked[:, :1].abs()
        theta = torch.where(m == 0, silent, torch.where(m == n_rows, at_least - 1, (at_least + below) / 2))
        theta_all[ids] = theta.squeeze(-1).clamp(min=0)
    return theta_all


class RestrictedLinear(Dictionary):
    """Some latents of a linear dictionary: computes only those, numbers them as the whole does."""

    kind: ClassVar[str] = "restricted"

    def __init__(self, whole: LinearDictionary, ids: Int[Tensor, " m"]) -> None:
        super().__init__()
        ids = ids.sort().values
        self.reads, self.writes, self.n_latents = whole.reads, whole.writes, whole.n_latents
        self.register_buffer("ids", ids)
        arrays = {k: v[ids] if k in ("W_enc", "b_enc", "W_dec") else v for k, v in whole.arrays().items()}
        self.part = whole._like(arrays, whole.sparsity.restrict(ids))

    ids: Tensor

    def _renumber(self, z: Latents) -> Latents:
        return Latents(z.values, Pattern(self.ids[z.ids], z.offsets, self.n_latents), z.shape, z.gate)

    def _local(self, z: Latents) -> Latents:
        inside = torch.isin(z.ids, self.ids)
        z = z if bool(inside.all()) else z.keep(inside, by="occurrence")
        pattern = Pattern(torch.searchsorted(self.ids, z.ids), z.offsets, len(self.ids))
        return Latents(z.values, pattern, z.shape, z.gate)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        z, pre = self.part.encode(acts, ctx)
        return Encoded(self._renumber(z), pre)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.part.decode(self._local(z))

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.part.rest(acts)

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return self.part.atoms(torch.searchsorted(self.ids, ids))

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        return self.part.linearise(acts, self._local(z), ctx)
