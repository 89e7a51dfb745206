"""JumpReLU with learned thresholds (Rajamanoharan et al. 2024, arXiv:2407.14435), under one of three penalties:

step        l0_weight x the number of latents that are on, straight-through (the paper)
quadratic   l0_weight x (mean l0 / target_l0 - 1)^2, so that the mean L0 is asked for by name (Gemma Scope 2)
tanh        l0_weight x sum of tanh(tanh_scale x f x |W_dec|), + pre_act_weight x sum of (theta - p)+ |W_dec| over dead
            latents (Anthropic, January 2025 update)

Coefficients hold where activations have a mean square norm of 1, as our normalisation makes them, and errors are
divided by their total variance: the paper's convention. Differs from it: the threshold itself is learned, not its
logarithm, which stalls under Adam; it is kept at 0 or above; Adam's first moment is not switched off. Thresholds start
not at 0.001 but where random rows already have the wanted L0 (`opening`), and the window is 2 d^-1/2 wide: runs here
are a thousand times shorter, and begun too dense they spent themselves on becoming sparse, at up to twice the FVU.
`lr_factor` is the thresholds' own learning rate over that of the rest: a tenth, as others have it, left them where they
began in runs of 150,000 places. The pre-activation loss is for dead latents only: for all of them it costs a dense
matrix.
"""

from statistics import NormalDist
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.sparsity import Norms, Plain, Sparsity, check_coefficient, check_k, per_place, ramp
from understudy.sparsity._straight_through import Jump, Step
from understudy.sparsity.threshold import Threshold

PENALTIES = ("step", "quadratic", "tanh")


def opening(n_latents: int, l0: float) -> float:
    """The threshold, in units of d^-1/2, above which `l0` of `n_latents` random unit rows see an activation of length
    1: what they see is about normal with that deviation. At least 0."""
    return max(0.0, NormalDist().inv_cdf(1 - min(0.5, l0 / n_latents)))


class JumpReLU(Sparsity):
    name: ClassVar[str] = "jumprelu"
    is_thresholded: ClassVar[bool] = True
    per_latent: ClassVar[tuple[str, ...]] = ("theta",)
    lr_factor: ClassVar[float] = 1.0
    theta: nn.Parameter

    def __init__(
        self,
        theta: Float[Tensor, " L"],
        bandwidth: float,
        l0_penalty: Literal["step", "quadratic", "tanh"] = "quadratic",
        l0_weight: float = 1.0,
        target_l0: float | None = None,
        tanh_scale: float = 4.0,
        pre_act_weight: float = 0.0,
        warmup: float = 0.0,
    ) -> None:
        """theta, bandwidth: in units of the pre-activations. warmup: share of the run over which l0_weight rises."""
        super().__init__()
        if l0_penalty not in PENALTIES:
            raise UnknownName.among("penalty of jumprelu (l0_penalty)", l0_penalty, PENALTIES)
        if (l0_penalty == "quadratic") != (target_l0 is not None):
            raise BadInput("target_l0 belongs to the quadratic penalty: give it there, and nowhere else.")
        self.theta = nn.Parameter(theta.detach().clone())
        self.bandwidth = check_coefficient("bandwidth", bandwidth, above=True)
        self.l0_penalty, self.l0_weight = l0_penalty, check_coefficient("l0_weight", l0_weight)
        self.target_l0 = None if target_l0 is None else check_coefficient("target_l0", target_l0, above=True)
        self.tanh_scale = check_coefficient("tanh_scale", tanh_scale, above=True)
        self.pre_act_weight = check_coefficient("pre_act_weight", pre_act_weight)
        self.warmup = check_coefficient("warmup", warmup)

    @classmethod
    def start(
        cls,
        n_latents: int,
        d_in: int,
        d_out: int,
        k: int,
        l0_penalty: Literal["step", "quadratic", "tanh"] = "quadratic",
        l0_weight: float | None = None,
        target_l0: float | None = None,
        bandwidth: float | None = None,
    ) -> Self:
        """By default the quadratic penalty, aimed at k latents a place."""
        unit = d_in**-0.5  # a unit row times an activation of length 1 is about this large
        if l0_penalty == "quadratic":
            target_l0 = check_k(k, n_latents) if target_l0 is None else target_l0
            check_coefficient("target_l0", target_l0, above=True)
            if target_l0 > n_latents:
                raise BadInput(f"target_l0={target_l0} is more than the {n_latents} latents there are.")
        theta = torch.full((n_latents,), opening(n_latents, k if target_l0 is None else target_l0) * unit)
        if l0_penalty == "tanh":
            # Their activations have norm sqrt(d): lengths there are sqrt(d) of ours, squared errors d.
            weight = 20 / d_out if l0_weight is None else l0_weight
            return cls(
                theta,
                2 * unit if bandwidth is None else bandwidth,
                "tanh",
                weight,
                None,
                4 * d_out**0.5,
                3e-6 * d_out**-0.5,
                1.0,
            )
        weight = {"step": 1e-3, "quadratic": 1.0}.get(l0_penalty, 0.0) if l0_weight is None else l0_weight
        return cls(theta, 2 * unit if bandwidth is None else bandwidth, l0_penalty, weight, target_l0, warmup=0.05)

    def forward(self, pre: Pre) -> Latents:
        """In training, occurrences just below their threshold are there too, as 0: the threshold learns from them."""
        below = self.bandwidth / 2 if self.training else 0.0
        z = pre.above(self.theta.detach() - below)
        return z.with_values(Jump.apply(z.values, self.theta[z.ids], self.bandwidth))  # pyright: ignore

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        z, weight = encoded.z, self.l0_weight * ramp(done, self.warmup)
        if self.l0_penalty == "tanh":
            length = norms()
            terms = {"sparsity": weight * per_place((self.tanh_scale * z.values * length[z.ids]).tanh(), z)}
            if self.pre_act_weight and dead is not None and bool(dead.any()):
                ids = dead.nonzero().squeeze(-1)
                silent = encoded.pre.top(len(ids), among=ids)
                short = (self.theta[silent.ids] - silent.values).relu() * length[silent.ids]
                terms["pre_act"] = self.pre_act_weight * per_place(short, silent)
            return terms
        with torch.no_grad():
            p = encoded.pre.at(z)
        l0 = per_place(Step.apply(p, self.theta[z.ids], self.bandwidth), z)  # pyright: ignore
        if self.target_l0 is not None:
            l0 = (l0 / self.target_l0 - 1).square()
        return {"sparsity": weight * l0}

    @torch.no_grad()
    def after_step(self) -> None:
        self.theta.clamp_(min=0)

    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name, "bandwidth": self.bandwidth, "l0_penalty": self.l0_penalty, "l0_weight": self.l0_weight,
            "target_l0": self.target_l0, "tanh_scale": self.tanh_scale, "pre_act_weight": self.pre_act_weight,
            "warmup": self.warmup,
        }  # fmt: skip

    def plain(self) -> Plain:
        return Plain(Threshold(self.theta))

    def _like(self, theta: Tensor, **changes: Any) -> "JumpReLU":
        numbers: dict[str, Any] = self.settings() | changes
        del numbers["name"]
        return type(self)(theta, **numbers)

    def scaled(self, factor: Tensor) -> "JumpReLU":
        s = float(factor)
        return self._like(self.theta * factor, bandwidth=self.bandwidth * s, tanh_scale=self.tanh_scale / s)

    def restrict(self, ids: Int[Tensor, " m"]) -> "JumpReLU":
        return self._like(self.theta[ids])
