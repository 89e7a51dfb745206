"""The two steps of JumpReLU, with the gradients that stand in for those they do not have (Rajamanoharan et al. 2024,
arXiv:2407.14435, section 3; rectangle kernel K(u) = 1 for |u| < 1/2). p is the raw pre-activation: what lies below
the threshold counts by how far below it lies, not as the 0 that it becomes."""

import torch


class Jump(torch.autograd.Function):
    """p, theta, eps -> p where p > theta, else 0. d/dp is that of the kept; d/dtheta = -(theta / eps) K((p - theta) /
    eps)."""

    @staticmethod
    def forward(ctx, p, theta, eps):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(p, theta)
        ctx.eps = eps
        return p * (p > theta)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        p, theta = ctx.saved_tensors
        inside = (p - theta).abs() < ctx.eps / 2
        return grad * (p > theta), -(theta / ctx.eps) * inside * grad, None


class Step(torch.autograd.Function):
    """p, theta, eps -> 1 where p > theta, else 0. No gradient for p; d/dtheta = -(1 / eps) K((p - theta) / eps)."""

    @staticmethod
    def forward(ctx, p, theta, eps):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(p, theta)
        ctx.eps = eps
        return (p > theta).to(p.dtype)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        p, theta = ctx.saved_tensors
        inside = (p - theta).abs() < ctx.eps / 2
        return None, -inside.to(grad.dtype) / ctx.eps * grad, None
