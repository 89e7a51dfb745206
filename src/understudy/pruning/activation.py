"""The obvious rival of influence: how strongly a node is on."""

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.graph import Graph


def activation(graph: Graph) -> Float[Tensor, " n"]:
    """A latent's activation, 0 if it is silent; of other nodes the length of what they write; fp64."""
    value = graph.nodes.value.double()
    silent = graph.nodes.where("latent") & (graph.nodes.value <= graph.nodes.threshold)
    return torch.where(silent, 0.0, value)
