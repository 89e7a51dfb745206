"""Some hidden units of a module as a dictionary: what a graph over neurons is run as."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary
from understudy.core.latents import Encoded, Latents, LinearPre, Pattern
from understudy.core.site import Site


class KeptNeurons(Dictionary):
    """Signed hidden units of one part, the same ones at every place; the others write nothing.

    Reads the hidden units themselves (`mlp.down_proj:in`): the whole up-projection still runs, though those rows of it
    that lead to kept neurons would do. Unlike TopNeurons it does not choose by what a place holds, so it is no oracle.
    """

    kind: ClassVar[str] = "kept_neurons"
    W: Tensor
    bias: Tensor
    ids: Tensor

    def __init__(
        self, read: Site, write: Site, W: Float[Tensor, "L d"], bias: Float[Tensor, " d"], ids: Int[Tensor, " m"]
    ) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (read,), (write,), W.shape[0]
        self.register_buffer("W", W)
        self.register_buffer("bias", bias)
        self.register_buffer("ids", ids.sort().values.to(W.device), persistent=False)

    def restrict(self, ids: Int[Tensor, " m"]) -> "KeptNeurons":
        return KeptNeurons(self.reads[0], self.writes[0], self.W, self.bias, ids)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        x = acts[self.reads[0]]
        values = x[..., self.ids]
        shape, m = tuple(values.shape[:-1]), len(self.ids)
        n = torch.Size(shape).numel()
        pattern = Pattern(self.ids.repeat(n), torch.arange(n + 1, device=x.device) * m, self.n_latents)
        nothing = LinearPre(x, x.new_zeros(0, x.shape[-1]), x.new_zeros(0))
        return Encoded(Latents(values.reshape(-1), pattern, shape), nothing)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: z.decode(self.W)}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.W[ids]}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: self.bias.expand(*acts[self.reads[0]].shape[:-1], -1)}
