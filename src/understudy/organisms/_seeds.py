"""Random numbers that only organisms draw."""

import hashlib

import torch


def salted(seed: int) -> int:
    """A seed of this shelf's own: a method that is started from the same small number must not start at the truth."""
    return int.from_bytes(hashlib.sha256(f"organism {seed}".encode()).digest()[:7])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(salted(seed))
