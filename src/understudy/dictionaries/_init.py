"""Data-dependent starting points shared by the kinds of this shelf."""

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from understudy.core.dictionary import Acts
from understudy.core.latents import LinearPre
from understudy.core.records.errors import BadActivations
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity

JITTER = 0.3
"""Length of the random direction that is added to a place's: latents that start at like places must differ."""
ROUNDS = 8
"""In which places are drawn: each knows those of the rounds before."""
FITTED = 2048
"""Places that the encoder's first scale is fitted on."""


class Normalisation(NamedTuple):
    """x_n = (x - center) / scale; after it E|x_n|^2 = 1 on the sample."""

    center: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]


@torch.no_grad()
def normalisation(acts: Acts, sites: Sequence[Site]) -> Normalisation:
    """Centre each site on its geometric median, then divide by its root mean square norm. Raises BadActivations."""
    centers, scales = [], []
    for site in sites:
        x = _rows(acts, site)
        if not bool(torch.isfinite(x).all()):
            raise BadActivations(f"{site} holds NaN or infinite activations: nothing can be trained on them.")
        center = geometric_median(x)
        scale = (x - center).square().sum(-1).mean().sqrt()
        if float(scale) < 1e-8 * (1 + float(center.norm())):
            raise BadActivations(f"{site} is constant on the first {len(x)} places: there is nothing to decompose.")
        centers.append(center)
        scales.append(scale.expand(len(center)))
    return Normalisation(torch.cat(centers), torch.cat(scales))


def geometric_median(x: Float[Tensor, "rows d"], steps: int = 50, tolerance: float = 1e-5) -> Float[Tensor, " d"]:
    """The point with the least mean distance to the rows, by Weiszfeld's iteration from the mean."""
    center = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - center).norm(dim=-1).clamp(min=1e-8)
        new = (weight[:, None] * x).sum(0) / weight.sum()
        moved = (new - center).norm()
        center = new
        if float(moved) <= tolerance * (1e-12 + float(center.norm())):
            break
    return center


@torch.no_grad()
def normalised(acts: Acts, sites: Sequence[Site], by: Normalisation) -> Float[Tensor, "rows d"]:
    """The sample in the units that a dictionary computes in, sites side by side."""
    return (torch.cat([_rows(acts, site) for site in sites], -1) - by.center) / by.scale


def _rows(acts: Acts, site: Site) -> Float[Tensor, "rows d"]:
    """On the processor, so that a start is the same on every device."""
    return acts[site].reshape(-1, acts[site].shape[-1]).float().cpu()


def unit_rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random directions of length 1."""
    return normalize(torch.randn(n, d, generator=generator), dim=-1)


@torch.no_grad()
def spread(x: Float[Tensor, "rows d"], n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """`n` of the rows, of as many directions as there are: each round draws rows with probability sin^2 of the angle
    to the nearest that was drawn before (k-means||, Bahmani et al. 2012, arXiv:1203.6402, with directions for points).

    Half the rows at most are drawn so; where `n` is more, the others are drawn evenly and may come again.
    """
    u = normalize(x, dim=-1)
    far, drawn = torch.ones(len(u), dtype=torch.double), []
    for part in torch.arange(min(n, len(u) // 2)).chunk(ROUNDS):
        drawn.append(torch.multinomial(far, len(part), generator=generator))
        for new in drawn[-1].split(1024):
            nearest = (u @ u[new].T).amax(-1).clamp(0, 1).double()
            far = torch.minimum(far, 1 - nearest.square()).clamp(min=1e-9)
    drawn.append(torch.randint(len(u), (n - sum(map(len, drawn)),), generator=generator))
    return torch.cat(drawn)


@torch.no_grad()
def near(x: Float[Tensor, "rows d"], picked: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Directions of length 1 near those of the picked rows."""
    return normalize(normalize(x[picked], dim=-1) + JITTER * unit_rows(len(picked), x.shape[1], generator), dim=-1)


@torch.no_grad()
def best_scale(
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "rows d_out"],
    W_enc: Float[Tensor, "L d_in"],
    W_dec: Float[Tensor, "L d_out"],
    rule: Sparsity,
) -> float:
    """What W_enc is multiplied by for the first reconstruction to fit `y` best: <y, y_hat> / <y_hat, y_hat>.

    Exact for rules whose latents scale with their pre-activations. JumpReLU's do not: fewer of them pass their first
    thresholds, and it learns better so than with thresholds that are scaled too (docs/log.md). 1 where nothing is
    written.
    """
    x, y = x[:FITTED], y[:FITTED]
    z = deepcopy(rule)(LinearPre(x, W_enc, torch.zeros(len(W_enc))))  # a copy: rules may count what they see
    hat = z.decode(W_dec)
    scale = float((y * hat).sum() / hat.square().sum().clamp(min=1e-30))
    return scale if scale > 0 else 1.0


def tied_at_places(
    sample: Acts, sites: Sequence[Site], n_latents: int, rule: Sparsity, seed: int
) -> dict[str, Float[Tensor, "..."]]:
    """Arrays of a dictionary that writes what it reads: each latent at the direction of a place over all its sites.
    Raises BadActivations."""
    center, scale = units = normalisation(sample, sites)
    x, generator = normalised(sample, sites, units), torch.Generator().manual_seed(seed)
    W = near(x, spread(x, n_latents, generator), generator)
    return {
        "W_enc": best_scale(x, x, W, W, rule) * W, "b_enc": torch.zeros(n_latents),
        "W_dec": W, "b_dec": torch.zeros(len(center)),
        "in_center": center, "in_scale": scale, "out_center": center, "out_scale": scale,
    }  # fmt: skip
