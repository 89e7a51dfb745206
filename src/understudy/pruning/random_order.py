"""The control: a graph of the same size that was not chosen by anything."""

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.graph import Graph


def random_order(graph: Graph, seed: int) -> Float[Tensor, " n"]:
    """A score for every node, drawn uniformly and independently of the graph; fp64."""
    return torch.rand(len(graph), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
