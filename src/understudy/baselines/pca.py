"""PCA of the true output, at the same budget: the k directions that explain most variance. An oracle."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from understudy.core.dictionary import Acts, Sparsity
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site


class PCA(LinearDictionary):
    """`x_hat = mean + V V^T (x - mean)` with the top k principal directions V; signed latents, all of them kept."""

    kind: ClassVar[str] = "pca"
    subtracts_b_dec: ClassVar[bool] = True
    is_oracle = True

    @classmethod
    def fit(cls, site: Site, sample: Acts, k: int, keep_all: Sparsity) -> Self:
        """sample[site]: rows [n, d]; k is clipped to the width; `keep_all`: the rule that drops nothing."""
        x = sample[site].double()
        mean = x.mean(0)
        _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
        V = vectors.flip(1)[:, :k].T.float().contiguous()
        arrays: dict[str, Tensor] = {"W_enc": V, "b_enc": V.new_zeros(len(V)), "W_dec": V, "b_dec": mean.float()}
        made = cls({site: x.shape[1]}, {site: x.shape[1]}, keep_all, arrays)
        made.is_oracle = True
        return made
