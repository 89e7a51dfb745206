"""Slopes by finite differences."""

from collections.abc import Callable

import torch
from torch import Tensor


def numeric_slope(value: Callable[[], float], parameter: Tensor, entry: int, step: float) -> float:
    """Central difference of `value` by one entry of a parameter, which is put back."""
    ends = []
    with torch.no_grad():
        before = parameter.view(-1)[entry].item()
        for sign in (1, -1):
            parameter.view(-1)[entry] = before + sign * step
            ends.append(value())
        parameter.view(-1)[entry] = before
    return (ends[0] - ends[1]) / (2 * step)
