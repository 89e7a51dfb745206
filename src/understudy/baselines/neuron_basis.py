"""The neurons of a module as its dictionary: every hidden unit a latent, with no training and no error. An oracle."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.baselines.kept_neurons import KeptNeurons
from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Linearised
from understudy.core.latents import Encoded, Latents, LinearPre
from understudy.core.site import Site


class NeuronBasis(KeptNeurons):
    """All hidden units, those that are 0 at a place left out there. What it is restricted to is `KeptNeurons`."""

    kind: ClassVar[str] = "neurons"
    is_oracle = True

    def __init__(self, read: Site, write: Site, W: Float[Tensor, "L d"], bias: Float[Tensor, " d"] | None) -> None:
        W = W.detach().float()
        bias = W.new_zeros(W.shape[1]) if bias is None else bias.detach().float()
        super().__init__(read, write, W, bias, torch.arange(len(W)))

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        a = acts[self.reads[0]].float()
        eye = torch.eye(self.n_latents, device=a.device)
        return Encoded(Latents.from_dense(a), LinearPre(a, eye, a.new_zeros(self.n_latents)))

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        ids, which = z.ids.unique(return_inverse=True)
        rows = torch.zeros(len(ids), self.n_latents, device=ids.device)
        rows[torch.arange(len(ids)), ids] = 1.0
        return Linearised({self.reads[0]: rows}, rows.new_zeros(len(ids)), which)
