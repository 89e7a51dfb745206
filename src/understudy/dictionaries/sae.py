"""Sparse autoencoder with a unit-norm decoder (Gao et al. 2024, arXiv:2406.04093, section 2 and A.1)."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import tied_at_places

BLOCK_BYTES = 1 << 19
"""Rows that upkeep looks at together."""


class SAE(LinearDictionary):
    """`x_hat = W_dec^T sparsity(W_enc (x - b_dec) + b_enc) + b_dec`, read and written at the same site(s).

    b_dec starts at the data's geometric median, each latent at the direction of a place (theirs: a random one), W_enc
    as a multiple of W_dec; every row of W_dec has length 1 after each step.
    """

    kind: ClassVar[str] = "sae"
    subtracts_b_dec: ClassVar[bool] = True

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        arrays = tied_at_places(sample, reads, n_latents, sparsity, seed)
        widths = {s: sample[s].shape[-1] for s in reads}
        return cls(widths, widths, sparsity, arrays)

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove the part of the gradient along each decoder row, which the norm constraint would undo."""
        if self.W_dec.grad is not None:
            for grad, W in zip(_blocks(self.W_dec.grad), _blocks(self.W_dec), strict=True):
                along = (grad * W).sum(-1, keepdim=True)
                grad.addcmul_(along, W, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        for W in _blocks(self.W_dec):
            W.div_(W.norm(dim=-1, keepdim=True).clamp(min=1e-12))


def _blocks(matrix: Float[Tensor, "L d"]) -> Iterator[Float[Tensor, "r d"]]:
    """Views of some rows at a time, so that what is computed for them is still in the cache when it is used."""
    return iter(matrix.split(max(1, BLOCK_BYTES // (matrix.element_size() * matrix.shape[1]))))
