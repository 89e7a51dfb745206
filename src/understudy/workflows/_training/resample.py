"""Resampling: dead latents begin again at inputs that are rebuilt badly (Bricken et al. 2023, "Towards
Monosemanticity", appendix on neuron resampling). The other cure, AuxK, is part of the loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary

if TYPE_CHECKING:
    from understudy.workflows._training.trainer import Trainer


@dataclass(frozen=True)
class Resample:
    """Every `every` places of the first 70% of a run (theirs: four times in its first half).

    A dead latent takes a place of the batch with probability proportional to its squared loss. Its encoder row becomes
    the input there, at half the mean length of live rows; its decoder row the input too where a dictionary writes
    what it reads, else the error, at the mean length of live rows. Its bias and optimiser state become 0, what its rule
    learned the median of live latents. Differs: half the length, where theirs, for ReLU alone, is 0.2, at which one
    that has to be among the k largest stays silent; the loss is taken on one batch, theirs on 819,200 inputs.
    """

    every: int
    seed: int
    until: float = 0.7
    scale: float = 0.5

    def due(self, before: int, after: int, total: int) -> bool:
        return before // self.every != after // self.every and after <= self.until * total

    @torch.no_grad()
    def __call__(self, trainer: "Trainer", acts: Acts) -> list[int]:
        """Revive what is dead in every group; how many it was in each."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + trainer.places) % (1 << 63))
        revived = []
        for i, group in enumerate(trainer.groups):
            errors = {s: acts[s] - hat for s, hat in group.reconstruct(acts).items()}
            loss = torch.stack([e.square().sum(-1) / trainer.states[i].variance[s] for s, e in errors.items()]).sum(0)
            chance = loss.square().cpu().double()
            revived.append(0)
            for j, member in enumerate(group.members):
                dead = (trainer.silent[i][j] >= trainer.dead_after).nonzero().squeeze(-1)
                alive = len(trainer.silent[i][j]) - len(dead)
                if not isinstance(member, LinearDictionary) or not len(dead) or not alive or not float(chance.sum()):
                    continue
                places = torch.multinomial(chance, len(dead), replacement=True, generator=generator).to(dead.device)
                self._restart(member, dead, places, acts, errors)
                for parameter in member.parameters():
                    entry = trainer.optimisers[i].state[parameter]
                    if entry and len(parameter) == member.n_latents:
                        entry["exp_avg"][dead], entry["exp_avg_sq"][dead] = 0, 0
                trainer.silent[i][j][dead] = 0
                revived[-1] += len(dead)
        return revived

    def _restart(
        self, member: LinearDictionary, dead: Int[Tensor, " m"], places: Int[Tensor, " m"], acts: Acts, errors: Acts
    ) -> None:
        alive = torch.ones(member.n_latents, dtype=torch.bool, device=dead.device)
        alive[dead] = False
        x = member.pre({s: acts[s][places] for s in member.reads}).x
        out = x if member.reads == member.writes else _cat(errors, member, places)
        member.W_enc[dead] = normalize(x, dim=-1) * self.scale * member.W_enc[alive].norm(dim=-1).mean()
        member.W_dec[dead] = normalize(out, dim=-1) * member.W_dec[alive].norm(dim=-1).mean()
        member.b_enc[dead] = 0
        for name in member.sparsity.per_latent:
            learned = getattr(member.sparsity, name)
            learned[dead] = learned[alive].median()


def _cat(errors: Acts, member: LinearDictionary, places: Tensor) -> Float[Tensor, "m d_out"]:
    """Errors at the written sites, in the units the decoder writes in."""
    return torch.cat([errors[s][places] for s in member.writes], -1) / member.out_scale
