"""Top-k neurons: the module's own hidden units at the same budget, plain and with the rest at their mean. An oracle."""

from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary
from understudy.core.latents import Encoded, Latents, LinearPre, Pattern
from understudy.core.site import Site


class TopNeurons(Dictionary):
    """Keeps the k neurons that write most at each place, |a_i - fill_i| x |w_i|; the others stay at `fill`.

    Reads the hidden units themselves (`mlp.down_proj:in`), so the original up-projection still runs.
    """

    kind: ClassVar[str] = "top_neurons"
    is_oracle = True

    def __init__(
        self,
        read: Site,
        write: Site,
        W: Float[Tensor, "L d"],
        bias: Float[Tensor, " d"] | None,
        k: int,
        fill: Float[Tensor, " L"] | None = None,
    ) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (read,), (write,), W.shape[0]
        W, self.k = W.detach().float(), min(k, W.shape[0])
        fill = W.new_zeros(W.shape[0]) if fill is None else fill.float()
        base = fill @ W + (0 if bias is None else bias.detach().float())
        for name, value in {"W": W, "fill": fill, "base": base, "norms": W.norm(dim=-1)}.items():
            self.register_buffer(name, value)

    W: Tensor
    fill: Tensor
    base: Tensor
    """What is written when every neuron is at `fill`."""
    norms: Tensor

    @classmethod
    def mean_filled(
        cls, read: Site, write: Site, W: Float[Tensor, "L d"], bias: Float[Tensor, " d"] | None, k: int, sample: Acts
    ) -> Self:
        """The dropped neurons at their mean over the rows of the sample."""
        return cls(read, write, W, bias, k, sample[read].double().mean(0).float())

    @classmethod
    def channels(cls, site: Site, d: int, k: int, sample: Acts) -> Self:
        """The coordinates of a site as its neurons: the rival of an SAE; the rest at their mean."""
        return cls.mean_filled(site, site, torch.eye(d, device=sample[site].device), None, k, sample)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        a = acts[self.reads[0]].float() - self.fill
        rows = a.reshape(-1, self.n_latents)
        ids = (rows.abs() * self.norms).topk(self.k, dim=-1, sorted=False).indices
        offsets = torch.arange(len(rows) + 1, device=rows.device) * self.k
        z = Latents(rows.gather(-1, ids).reshape(-1), Pattern(ids.reshape(-1), offsets, self.n_latents), a.shape[:-1])
        one = torch.eye(self.n_latents, device=a.device)
        return Encoded(z, LinearPre(a, one, one.new_zeros(self.n_latents)))

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: z.decode(self.W)}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.W[ids]}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: self.base.expand(*acts[self.reads[0]].shape[:-1], -1)}
