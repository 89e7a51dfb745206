"""Features embedded in an activation, then one ReLU layer: what organisms with hand-set weights are made of."""

import torch
from torch import Tensor, nn

from understudy.core.network import Part
from understudy.core.site import Site
from understudy.organisms._transformer import MLP

ACT, READ, WRITE, NEURONS = Site("embed"), Site("mlp", "in"), Site("mlp"), Site("mlp.act")
SITES = {"act": "embed", "mlp_in": "mlp:in", "neurons": "mlp.act", "mlp_out": "mlp"}
PART = Part("mlp.0", READ, WRITE)


class Planted(nn.Module):
    """x [batch, pos, n] -> embed -> act [batch, pos, d] -> mlp -> [batch, pos, d_out]."""

    def __init__(self, n: int, d: int, d_mlp: int, d_out: int) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Linear(n, d), MLP(d, d_mlp, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.embed(x))


def planted(directions: Tensor, offset: Tensor, read: Tensor, threshold: Tensor | float, write: Tensor) -> Planted:
    """directions [n, d]: what each input adds to `act`. read [d_mlp, d], write [d_mlp, d_out]: a neuron's rows; it
    fires above `threshold`."""
    made = Planted(len(directions), directions.shape[1], len(read), write.shape[1])
    with torch.no_grad():
        made.embed.weight.copy_(directions.T)
        made.embed.bias.copy_(offset)
        made.mlp.read.weight.copy_(read)
        made.mlp.read.bias.copy_(-read @ offset - threshold)
        made.mlp.write.weight.copy_(write.T)
        made.mlp.write.bias.zero_()
    return made.eval()


def unit(n: int, d: int, generator: torch.Generator) -> Tensor:
    """n random directions of length 1."""
    x = torch.randn(n, d, generator=generator)
    return x / x.norm(dim=1, keepdim=True)


def auroc(low: Tensor, high: Tensor) -> float:
    """Chance that a value of `high` lies above one of `low`, ties counted half."""
    order = torch.cat([low, high])
    _, inverse, counts = order.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    n, m = len(low), len(high)
    return float((ranks[inverse][n:].sum() - m * (m + 1) / 2) / (n * m))
