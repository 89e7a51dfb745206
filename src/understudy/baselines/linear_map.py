"""The best linear map from what a module reads to what it writes: how much of the module needs no features at all."""

from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Sparsity
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site


class LinearMap(LinearDictionary):
    """`y_hat = x W_skip + b_dec`, fitted by ridge regression; no latents."""

    kind: ClassVar[str] = "linear_map"

    @classmethod
    def fit(cls, read: Site, write: Site, sample: Acts, keep_all: Sparsity, ridge: float = 1e-4) -> Self:
        """sample: rows [n, d] at both sites. `ridge` is relative to the mean squared input."""
        x, y = sample[read].double(), sample[write].double()
        W, bias = ridge_regression(x, y, ridge)
        d_in, d_out = W.shape
        arrays: dict[str, Tensor] = {
            "W_enc": x.new_zeros(0, d_in).float(), "b_enc": x.new_zeros(0).float(),
            "W_dec": x.new_zeros(0, d_out).float(), "b_dec": bias.float(), "W_skip": W.float(),
        }  # fmt: skip
        return cls({read: d_in}, {write: d_out}, keep_all, arrays)


def ridge_regression(
    x: Float[Tensor, "n a"], y: Float[Tensor, "n b"], ridge: float
) -> tuple[Float[Tensor, "a b"], Float[Tensor, " b"]]:
    """W, bias that minimise |y - xW - bias|^2 + ridge E|x|^2/a |W|^2, the bias free."""
    mx, my = x.mean(0), y.mean(0)
    x, y = x - mx, y - my
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    W = torch.linalg.solve(gram, x.T @ y)
    return W, my - mx @ W
