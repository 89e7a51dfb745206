"""Fingerprints: short hashes that tell other weights apart."""

import hashlib

import torch

from understudy.core.dictionary import Dictionary
from understudy.core.network import Network


def dictionary_fingerprint(dictionary: Dictionary) -> str:
    """Hash of a dictionary's kind, sites and every value of its arrays, thresholds included (16 hexadecimal digits).

    Another dtype is another fingerprint; the device is not.
    """
    sites = (*map(str, dictionary.reads), ">", *map(str, dictionary.writes))
    digest = hashlib.sha256(" ".join((dictionary.kind, *sites)).encode())
    for name, value in sorted(dictionary.state_dict().items()):
        digest.update(f" {name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def network_fingerprint(network: Network) -> str:
    """A hash of up to 256 values of every parameter: tells other weights apart, at no cost for large networks."""
    digest = hashlib.sha256()
    for name, parameter in network.module.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
