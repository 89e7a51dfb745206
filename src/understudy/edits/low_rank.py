"""Error models: what a dictionary misses, predicted from what it reads by a few directions.

An error node of a graph has no inputs: it is looked up on a clean pass. An error model has inputs, so it runs on any.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Dictionary, Group, Sparsity
from understudy.core.linear import LinearDictionary
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.edits.restriction import check_places

ROWS = 4096
"""Places at once."""


class ErrorModel(LinearDictionary):
    """`error_hat = W_dec^T (W_enc x) + b_dec` with r signed latents: pseudo-features, on at every place."""

    kind: ClassVar[str] = "error_model"


@torch.no_grad()
def low_rank(groups: Sequence[Group], sample: Acts, rank: int, keep_all: Sparsity, ridge: float = 1e-4) -> list[Group]:
    """New groups with one more member a written site: the rank-r affine map from what its writers read to what they
    miss that leaves the least squared error on `sample` (reduced-rank ridge regression).

    sample: rows [n, d] of training data at the sites they read and write. keep_all: the rule that drops nothing. The
    error model of an SAE reads what it is to write: at full rank it copies, and means nothing.
    Raises BadInput for a rank below 1.
    """
    check_places(groups, "an error model")
    if rank < 1:
        raise BadInput(f"an error model of rank {rank} predicts nothing; its rank must be at least 1.")
    return [_modelled(g, sample, rank, keep_all, ridge) for g in groups]


def _modelled(group: Group, sample: Acts, rank: int, keep_all: Sparsity, ridge: float) -> Group:
    missed = _errors(group, sample)
    models: list[Dictionary] = []
    for site, error in missed.items():
        reads = tuple(dict.fromkeys(s for m in group.writers(site) for s in m.reads))
        x = torch.cat([sample[s] for s in reads], -1).double()
        B, bias = reduced_rank(x, error.double(), rank, ridge)
        encoder, decoder = (part.float() for part in B)
        arrays = {"W_enc": encoder, "b_enc": encoder.new_zeros(len(encoder)), "W_dec": decoder, "b_dec": bias.float()}
        widths = {s: sample[s].shape[-1] for s in reads}
        models.append(ErrorModel(widths, {site: error.shape[-1]}, keep_all, arrays).eval().requires_grad_(False))
    return Group([*group.members, *models], group.biases)


def _errors(group: Group, sample: Acts) -> dict[Site, Tensor]:
    parts: dict[Site, list[Tensor]] = {s: [] for s in group.writes}
    for i in range(0, len(sample[group.writes[0]]), ROWS):
        acts = {s: x[i : i + ROWS] for s, x in sample.items()}
        for site, written in group.reconstruct(acts).items():
            parts[site].append(acts[site] - written)
    return {s: torch.cat(p) for s, p in parts.items()}


def reduced_rank(
    x: Float[Tensor, "n a"], y: Float[Tensor, "n b"], rank: int, ridge: float
) -> tuple[tuple[Float[Tensor, "r a"], Float[Tensor, "r b"]], Float[Tensor, " b"]]:
    """(W_enc, W_dec), bias of the best `x W_enc^T W_dec + bias` of rank at most r; W_dec has orthonormal rows.

    Source: Izenman 1975, Reduced-rank regression for the multivariate linear model; with ridge times the mean squared
    input added to the covariance of x.
    """
    mx, my = x.mean(0), y.mean(0)
    x, y = x - mx, y - my
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    W = torch.linalg.solve(gram, x.T @ y)
    _, vectors = torch.linalg.eigh(W.T @ gram @ W)
    V = vectors.flip(1)[:, :rank].T
    encoder = V @ W.T
    return (encoder, V), my - mx @ encoder.T @ V
