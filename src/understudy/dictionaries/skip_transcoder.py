"""Skip transcoder: a transcoder with a dense linear path beside its latents (Paulo, Shabalin, Belrose 2025,
arXiv:2501.18823)."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries.transcoder import Transcoder


class SkipTranscoder(LinearDictionary):
    """`y_hat = W_dec^T sparsity(W_enc x + b_enc) + W_skip^T x + b_dec`. W_skip starts at 0, the rest as a transcoder's.

    The latents are left what a linear map cannot do. L0 does not count the path: it is dense, and part of `rest`.
    """

    kind: ClassVar[str] = "skip_transcoder"
    spans: ClassVar[Spans] = "part"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        plain = Transcoder.start(reads, writes, n_latents, sparsity, sample, seed)
        d_in, d_out = sum(plain.d_reads), sum(plain.d_writes)
        widths = [{s: sample[s].shape[-1] for s in sites} for sites in (reads, writes)]
        return cls(widths[0], widths[1], sparsity, plain.arrays() | {"W_skip": torch.zeros(d_in, d_out)})
