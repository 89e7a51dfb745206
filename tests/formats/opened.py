"""An entry of a file as a dictionary, without a network: sites are stand-ins of the right width."""

import torch
from torch import Tensor

from understudy.core.dictionary import DictionarySpec
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site
from understudy.formats import Entry
from understudy.workflows._runs import from_spec

READ = Site("x")


def opened(entry: Entry) -> LinearDictionary:
    writes = (READ,) if entry.kind == "sae" else tuple(Site(f"y{i}") for i in range(len(entry.writes)))
    settings = {"sparsity": dict(entry.rule), "d_reads": [entry.d_in], "d_writes": [entry.d_out] * len(writes)}
    return from_spec(DictionarySpec(entry.kind, (READ,), writes, settings, entry.load()))


def codes(dictionary: LinearDictionary, x: Tensor) -> Tensor:
    """Dense latents [rows, n_latents]."""
    return dictionary.encode({READ: x}).z.dense()


def written(dictionary: LinearDictionary, x: Tensor) -> Tensor:
    """What is written at the first site, biases and skip included."""
    return dictionary.reconstruct({READ: x})[dictionary.writes[0]]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))
    assert torch.count_nonzero(theirs) > 0
