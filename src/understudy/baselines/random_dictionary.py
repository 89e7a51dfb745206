"""Random directions with the best decoder for them: what sparsity alone buys, without learned features."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from understudy.core.dictionary import Acts, Sparsity
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site

MAX_LATENTS = 4096
"""The decoder solves a system of this size; a wider dictionary is compared with one of this width."""


class RandomDictionary(LinearDictionary):
    """Random unit encoder rows on centred input, the given rule, ridge-regressed decoder."""

    kind: ClassVar[str] = "random_dictionary"

    @classmethod
    def fit(
        cls, read: Site, write: Site, n_latents: int, rule: Sparsity, sample: Acts, seed: int, ridge: float = 1e-3
    ) -> Self:
        """sample: rows [n, d] at both sites. n_latents is clipped at 4096."""
        n_latents = min(n_latents, MAX_LATENTS)
        x, y = sample[read].float(), sample[write].float()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(n_latents, x.shape[1], generator=generator, device="cpu")  # the same on every device
        W_enc = torch.nn.functional.normalize(drawn, dim=-1).to(x.device)
        center = x.mean(0)
        arrays: dict[str, Tensor] = {
            "W_enc": W_enc, "b_enc": x.new_zeros(n_latents), "W_dec": x.new_zeros(n_latents, y.shape[1]),
            "b_dec": y.mean(0), "in_center": center, "in_scale": torch.ones_like(center),
        }  # fmt: skip
        made = cls({read: x.shape[1]}, {write: y.shape[1]}, rule, arrays)
        made._solve(x, y, read, ridge)
        return made

    @torch.no_grad()
    def _solve(self, x: Tensor, y: Tensor, read: Site, ridge: float) -> None:
        """Normal equations over blocks of rows; the bias column is the last latent."""
        n = self.n_latents
        gram, cross = x.new_zeros(n + 1, n + 1), x.new_zeros(n + 1, y.shape[1])
        for i in range(0, len(x), 2048):
            z = self.encode({read: x[i : i + 2048]}).z.dense()
            z = torch.cat([z, z.new_ones(len(z), 1)], 1)
            gram.addmm_(z.T, z)
            cross.addmm_(z.T, y[i : i + 2048])
        gram[:n, :n].diagonal().add_(ridge * gram[:n, :n].diagonal().mean())
        solution = torch.linalg.solve(gram.double() + 1e-6 * torch.eye(n + 1, device=x.device), cross.double()).float()
        self.W_dec.copy_(solution[:n])
        assert self.b_dec is not None
        self.b_dec.copy_(solution[n])
