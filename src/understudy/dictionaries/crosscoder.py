"""Acausal crosscoder: one set of latents for several sites (Lindsey et al. 2024, "Sparse Crosscoders")."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import best_scale, near, normalisation, normalised, spread


class Crosscoder(LinearDictionary):
    """Reads and writes every site; each is normalised on its own, so that none outweighs the others. Each
    latent starts at the direction of a place, over all sites.

    It writes its first site before it has read its last: it intervenes and analyses, it cannot stand in (see
    `AcausalReplacement`).
    """

    kind: ClassVar[str] = "crosscoder"
    spans: ClassVar[Spans] = "sites"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        center, scale = units = normalisation(sample, reads)
        x, generator = normalised(sample, reads, units), torch.Generator().manual_seed(seed)
        W = near(x, spread(x, n_latents, generator), generator)
        arrays = {
            "W_enc": best_scale(x, x, W, W, sparsity) * W, "b_enc": torch.zeros(n_latents),
            "W_dec": W, "b_dec": torch.zeros(len(center)),
            "in_center": center, "in_scale": scale, "out_center": center, "out_scale": scale,
        }  # fmt: skip
        widths = {s: sample[s].shape[-1] for s in reads}
        return cls(widths, widths, sparsity, arrays)
