"""The neurons of a module as its dictionary: every hidden unit a latent, with no training and no error. An oracle."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.baselines.kept_neurons import KeptNeurons
from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, Linearised
from understudy.core.latents import Encoded, Latents, LinearPre
from understudy.core.site import Site


class NeuronBasis(Dictionary):
    """Reads the hidden units themselves (`mlp.down_proj:in`) and writes them through the module's own last matrix."""

    kind: ClassVar[str] = "neurons"
    is_oracle = True
    W: Tensor
    bias: Tensor

    def __init__(self, read: Site, write: Site, W: Float[Tensor, "L d"], bias: Float[Tensor, " d"] | None) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (read,), (write,), W.shape[0]
        self.register_buffer("W", W.detach().float())
        self.register_buffer("bias", W.new_zeros(W.shape[1]).float() if bias is None else bias.detach().float())

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        a = acts[self.reads[0]].float()
        eye = torch.eye(self.n_latents, device=a.device)
        return Encoded(Latents.from_dense(a), LinearPre(a, eye, a.new_zeros(self.n_latents)))

    def restrict(self, ids: Int[Tensor, " m"]) -> KeptNeurons:
        return KeptNeurons(self.reads[0], self.writes[0], self.W, self.bias, ids)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: z.decode(self.W)}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.W[ids]}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: self.bias.expand(*acts[self.reads[0]].shape[:-1], -1)}

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        ids, which = z.ids.unique(return_inverse=True)
        rows = torch.zeros(len(ids), self.n_latents, device=ids.device)
        rows[torch.arange(len(ids)), ids] = 1.0
        return Linearised({self.reads[0]: rows}, rows.new_zeros(len(ids)), which)
