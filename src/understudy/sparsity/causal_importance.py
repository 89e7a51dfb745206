"""Causal importance: each latent has a gate of its own, a small network that reads the latent's pre-activation and says
how much of it has to be there (Bushnaq et al. 2025, "Stochastic Parameter Decomposition", arXiv:2506.20790, section 2.3
and appendix A). Latents are signed: the value is the pre-activation times the gate.

    raw = w_out . gelu(w_in h + b_in) + b_out        gate = clamp(raw, 0, 1)

Training reads `raw` through two squashings with other gradients: `lower` makes masks and lets a closed gate open again,
`upper` is what the penalty counts. Differs from the paper: its masks may be slightly negative where a gate is closed;
here, as in its authors' later code, the leak is in the gradient only. `one_sided` (ours) closes a gate where h <= 0, so
that two features that point opposite ways cannot share a latent by sign."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.latents import Encoded, Latents, LinearPre, Pattern, Pre
from understudy.core.sparsity import Norms, Sparsity, check_coefficient

LEAK = 0.01
_EPS = 1e-12
_HELD = 1 << 25
"""Numbers in the largest temporary where gates are only looked at."""


class CausalImportance(Sparsity):
    name: ClassVar[str] = "causal_importance"
    is_thresholded: ClassVar[bool] = True

    def __init__(
        self, n_latents: int, importance: float = 3e-3, p: float = 1.0, one_sided: bool = False, hidden: int = 16
    ) -> None:
        """importance: weight of the mean over places of sum_c upper(raw_c)^p. hidden: width of each gate's network."""
        super().__init__()
        self.importance, self.p = check_coefficient("importance", importance), check_coefficient("p", p, above=True)
        self.one_sided, self.hidden = one_sided, hidden
        for name in ("w_in", "b_in", "w_out"):
            self.register_parameter(name, nn.Parameter(torch.zeros(n_latents, hidden)))
        self.b_out = nn.Parameter(torch.zeros(n_latents))
        self.register_buffer("unit", torch.ones(n_latents))
        self._seen: tuple[Pre | None, Tensor] = (None, self.b_out)
        self.draw(torch.Generator().manual_seed(0))

    w_in: nn.Parameter
    b_in: nn.Parameter
    w_out: nn.Parameter
    unit: Tensor
    """What a pre-activation is divided by before its gate reads it."""

    @classmethod
    def start(
        cls,
        n_latents: int,
        importance: float | None = None,
        importance_p: float | None = None,
        one_sided: bool | None = None,
    ) -> Self:
        return cls(
            n_latents,
            3e-3 if importance is None else importance,
            1.0 if importance_p is None else importance_p,
            bool(one_sided),
        )

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Gates as training starts them: weights from N(0, gain^2 / fan_in), gain sqrt 2 and then 1, biases 0."""
        self.w_in.copy_(2**0.5 * torch.randn(self.w_in.shape, generator=generator))
        self.w_out.copy_(torch.randn(self.w_out.shape, generator=generator) / self.hidden**0.5)
        self.b_in.zero_()
        self.b_out.zero_()

    def importances(self, pre: Pre) -> tuple[Float[Tensor, "R L"], Float[Tensor, ""]]:
        """How far every gate is open at every row, in [0, 1], and what that costs: `importance` x the mean over rows
        of the sum over latents of upper(raw)^p. Dense, as all gates learn."""
        seen, raw = self._seen
        if seen is not pre:
            raw = self._raw(pre)
        return lower(raw), self.importance * (upper(raw) + _EPS).pow(self.p).sum(-1).mean()

    def _raw(self, pre: Pre) -> Float[Tensor, "R L"]:
        assert isinstance(pre, LinearPre)
        return self._of(F.linear(pre.x, pre.W, pre.b))

    def _of(self, h: Float[Tensor, "r L"]) -> Float[Tensor, "r L"]:
        """The gates' networks on pre-activations; latents first and rows last, as batched products."""
        inner = torch.baddbmm(self.b_in[..., None], self.w_in[..., None], (h / self.unit).T[:, None])
        raw = torch.baddbmm(self.b_out[:, None, None], self.w_out[:, None], F.gelu(inner))[:, 0].T
        return torch.where(h > 0, raw, -raw.abs()) if self.one_sided else raw

    def _blocks(self, pre: Pre) -> Iterator[Float[Tensor, "r L"]]:
        """Raw gates: in one piece where they learn, which the objective will ask for again; else a few rows at once."""
        if torch.is_grad_enabled():
            self._seen = (pre, self._raw(pre))
            yield self._seen[1]
            return
        for _, block in pre.chunks():
            for h in block.split(max(1, _HELD // (self.hidden * pre.n_latents))):
                yield self._of(h)

    def forward(self, pre: Pre) -> Latents:
        """Those whose gates are open, with the gates."""
        ids, counts, gates = [], [], []
        for raw in self._blocks(pre):
            row, column = (raw > 0).nonzero(as_tuple=True)
            ids.append(column)
            gates.append(lower(raw[row, column]))
            counts.append(torch.bincount(row, minlength=len(raw)))
        if not ids:
            return Latents.none(pre.shape, self.b_out, pre.n_latents)
        count = torch.cat(counts)
        pattern = Pattern(torch.cat(ids), torch.cat([count.new_zeros(1), count.cumsum(0)]), pre.n_latents)
        gate = torch.cat(gates)
        return Latents(pre.at(Latents(gate, pattern, pre.shape)) * gate, pattern, pre.shape, gate)

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        return {"importance": self.importances(encoded.pre)[1]}

    def settings(self) -> dict[str, Any]:
        n, sizes = len(self.b_out), {"p": self.p, "one_sided": self.one_sided, "hidden": self.hidden}
        return {"name": self.name, "n_latents": n, "importance": self.importance, **sizes}

    def scaled(self, factor: Float[Tensor, ""]) -> "CausalImportance":
        return self._with({**self.state_dict(), "unit": self.unit * factor})

    def restrict(self, ids: Int[Tensor, " m"]) -> "CausalImportance":
        return self._with({name: value[ids] for name, value in self.state_dict().items()})

    def _with(self, arrays: dict[str, Tensor]) -> "CausalImportance":
        new = CausalImportance(len(arrays["b_out"]), self.importance, self.p, self.one_sided, self.hidden)
        new.load_state_dict(arrays)
        return new.to(self.b_out)


class _Lower(torch.autograd.Function):
    """clamp(z, 0, 1). A closed gate hears only of losses that want it open, and only faintly."""

    @staticmethod
    def forward(ctx, z):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(z)
        return z.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        open_part = torch.where(z <= 1, grad, torch.zeros_like(grad))
        return torch.where(z <= 0, LEAK * grad.clamp(max=0), open_part)


def lower(raw: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """clamp(raw, 0, 1). Gradient at raw <= 0: LEAK times that of the loss where it wants more, else 0; above 1: 0."""
    return _Lower.apply(raw)  # pyright: ignore[reportReturnType]


def upper(raw: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """0 below 0, raw up to 1, and LEAK x (raw - 1) more above, so that a gate that is too sure comes back."""
    return torch.where(raw > 1, 1 + LEAK * (raw - 1), raw.clamp(min=0))
