"""A held matrix times a live value: with many gradients at once, one product in place of one for each."""

from typing import Any

import torch
from torch import Tensor


class _Gradient(torch.autograd.Function):
    """held^T @ gradient. A batch of gradients is laid side by side, so that `held` is not copied for each."""

    @staticmethod
    def forward(held: Tensor, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return held.mT @ grad

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, held: Tensor, grad: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.movedim(in_dims[1], -2)  # [..., n, batch, d]
        out = held.mT @ grad.reshape(*grad.shape[:-2], -1)
        return out.unflatten(-1, (info.batch_size, -1)), held.dim() - 1


class _HeldProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held: Tensor, live: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(held)
        return held @ live

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, _Gradient.apply(ctx.saved_tensors[0], grad)  # pyright: ignore[reportReturnType]


def fits(held: Tensor, live: Tensor) -> bool:
    """Stacks of matrices of one shape, such as attention patterns and values."""
    return held.dim() == live.dim() >= 3 and held.shape[:-2] == live.shape[:-2] and held.dtype == live.dtype


def held_product(held: Tensor, live: Tensor) -> Tensor:
    """held @ live, whose gradients in a batch cost one product of stacks, and no copies of `held`."""
    return _HeldProduct.apply(held, live)  # pyright: ignore[reportReturnType]
