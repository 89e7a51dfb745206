"""Data-dependent starting points shared by the kinds of this shelf."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts
from understudy.core.records.errors import BadActivations
from understudy.core.site import Site


class Normalisation(NamedTuple):
    """x_n = (x - center) / scale; after it E|x_n|^2 = 1 on the sample."""

    center: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]


@torch.no_grad()
def normalisation(acts: Acts, sites: Sequence[Site]) -> Normalisation:
    """Centre each site on its geometric median, then divide by its root mean square norm. Raises BadActivations."""
    centers, scales = [], []
    for site in sites:
        x = acts[site].reshape(-1, acts[site].shape[-1]).float()
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


def unit_rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random directions of length 1."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)
