"""Matryoshka: the first latents alone must rebuild too, so that they stay general while later ones add detail
(Bussmann et al. 2025, arXiv:2503.17547). Latents are counted in order; under BatchTopK one cut serves all prefixes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.latents import Encoded
from understudy.core.objective import Loss, OnSequences, TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.objectives.local_fvu import LocalFVU, fvu_by_site


@dataclass(frozen=True)
class Matryoshka:
    """Mean FVU over the biases alone and every prefix of the latents, each counted once, + what `local` adds."""

    sizes: tuple[int, ...]
    """Latents of each group in order; prefixes are their running sums, the last of them all latents."""
    local: LocalFVU = field(default_factory=LocalFVU)
    needs: Literal["rows", "sequences"] = "rows"

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise BadInput(f"sizes={self.sizes}: a Matryoshka needs groups of at least one latent.")

    def __call__(
        self, group: Group, acts: Acts, encoded: list[Encoded], run: OnSequences | None, state: TrainingState
    ) -> Loss:
        levels, hats = [], {}
        for hats in self.prefixes(group, acts, encoded):
            levels.append(torch.stack(list(fvu_by_site(acts, hats, state).values())).mean())
        terms = {"fvu": levels[-1].detach()}
        terms |= {f"fvu/first {n}": v.detach() for n, v in zip(accumulate(self.sizes), levels[1:-1])}
        return self.local.with_extras(Loss(torch.stack(levels).mean(), terms), group, acts, encoded, hats, state)

    def prefixes(self, group: Group, acts: Acts, encoded: list[Encoded]) -> Iterator[dict[Site, Tensor]]:
        """What is written by no latent, then with one group of latents after another: each decoded once and added."""
        for member in group.members:
            if sum(self.sizes) != member.n_latents:
                raise BadInput(f"sizes {self.sizes} add up to {sum(self.sizes)}, not to {member.n_latents} latents.")
        nothing = [e.z.keep(torch.zeros_like(e.z.ids, dtype=torch.bool), by="occurrence") for e in encoded]
        hats = group.write(nothing, acts)
        yield dict(hats)
        first = 0
        for size in self.sizes:
            for member, e in zip(group.members, encoded, strict=True):
                inside = (e.z.ids >= first) & (e.z.ids < first + size)
                for site, part in member.decode(e.z.keep(inside, by="occurrence")).items():
                    hats[site] = hats[site] + part
            yield dict(hats)
            first += size
