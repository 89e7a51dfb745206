"""Transcoder: predicts a module's output from its input (Dunefsky et al. 2024, arXiv:2406.11944)."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import best_scale, near, normalisation, normalised, spread


class Transcoder(LinearDictionary):
    """`y_hat = W_dec^T sparsity(W_enc x + b_enc) + b_dec`. Each latent starts at a place: it reads
    the input's direction there and writes the output's. b_dec starts at the outputs' median."""

    kind: ClassVar[str] = "transcoder"
    spans: ClassVar[Spans] = "part"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        read, write = normalisation(sample, reads), normalisation(sample, writes)
        x, y = normalised(sample, reads, read), normalised(sample, writes, write)
        generator = torch.Generator().manual_seed(seed)
        places = spread(x, n_latents, generator)
        W_enc, W_dec = near(x, places, generator), near(y, places, generator)
        arrays = {
            "W_enc": best_scale(x, y, W_enc, W_dec, sparsity) * W_enc, "b_enc": torch.zeros(n_latents),
            "W_dec": W_dec, "b_dec": torch.zeros(len(write.center)),
            "in_center": read.center, "in_scale": read.scale, "out_center": write.center, "out_scale": write.scale,
        }  # fmt: skip
        widths = [{s: sample[s].shape[-1] for s in sites} for sites in (reads, writes)]
        return cls(widths[0], widths[1], sparsity, arrays)
