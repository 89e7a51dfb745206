"""Transcoder: predicts a module's output from its input (Dunefsky et al. 2024, arXiv:2406.11944)."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import normalisation, unit_rows


class Transcoder(LinearDictionary):
    """`y_hat = W_dec^T sparsity(W_enc x + b_enc) + b_dec`. W_dec starts at 0, b_dec at the outputs' median."""

    kind: ClassVar[str] = "transcoder"
    spans: ClassVar[Spans] = "part"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        read, write = normalisation(sample, reads), normalisation(sample, writes)
        d_in, d_out = len(read.center), len(write.center)
        arrays = {
            "W_enc": unit_rows(n_latents, d_in, torch.Generator().manual_seed(seed)), "b_enc": torch.zeros(n_latents),
            "W_dec": torch.zeros(n_latents, d_out), "b_dec": torch.zeros(d_out),
            "in_center": read.center, "in_scale": read.scale, "out_center": write.center, "out_scale": write.scale,
        }  # fmt: skip
        widths = [{s: sample[s].shape[-1] for s in sites} for sites in (reads, writes)]
        return cls(widths[0], widths[1], sparsity, arrays)
