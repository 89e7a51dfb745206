"""Local reconstruction with AuxK: the fraction of variance unexplained at each written site, plus what dead latents
could explain of the error (Gao et al. 2024, arXiv:2406.04093, section 2 and A.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Dictionary, Group
from understudy.core.latents import Encoded
from understudy.core.objective import Loss, TrainingState
from understudy.core.site import Site


@dataclass(frozen=True)
class LocalFVU:
    """Mean over sites of `|y - y_hat|^2 / Var[y]` (variance fixed at the start), + `aux_weight` x AuxK."""

    k_aux: int = 0
    """Dead latents used at each place by AuxK; 0 turns it off."""
    aux_weight: float = 1 / 32
    needs: Literal["rows", "sequences"] = "rows"

    def __call__(
        self,
        group: Group,
        acts: Acts,
        encoded: list[Encoded],
        run: Callable[..., Any] | None,
        state: TrainingState,
    ) -> Loss:
        hats = group.write([e.z for e in encoded], acts)
        errors = {s: acts[s] - hat for s, hat in hats.items()}
        fvu = {s: e.square().sum(-1).mean() / state.variance[s] for s, e in errors.items()}
        mean_fvu = torch.stack(list(fvu.values())).mean()
        terms = {"fvu": mean_fvu.detach()}
        if len(fvu) > 1:
            terms |= {f"fvu/{s}": v.detach() for s, v in fvu.items()}
        total = mean_fvu
        if self.k_aux and any(bool(d.any()) for d in state.dead):
            aux = self.auxiliary(group, encoded, {s: e.detach() for s, e in errors.items()}, state)
            terms["aux"] = aux.detach()
            total = total + self.aux_weight * aux
        return Loss(total, terms)

    def auxiliary(
        self, group: Group, encoded: list[Encoded], errors: dict[Site, Tensor], state: TrainingState
    ) -> Float[Tensor, ""]:
        """AuxK: how badly the `k_aux` strongest dead latents of each place rebuild the error that is left.

        Normalised by the batch's own error variance; an error that is constant counts as 0. The input is held
        fixed, so b_dec gets no gradient from it: dead latents are to learn the error, not to move it.
        """
        hats: dict[Site, Tensor] = {}
        for member, e, dead in zip(group.members, encoded, state.dead, strict=True):
            for site, part in self._dead_part(member, e, dead).items():
                hats[site] = hats[site] + part if site in hats else part
        ratios = []
        for site, hat in hats.items():
            error = errors[site]
            spread = (error - error.reshape(-1, error.shape[-1]).mean(0)).square().sum()
            # Not a quotient made 0 afterwards: its gradient would still be NaN.
            constant = bool(spread <= 1e-10 * error.square().sum())
            ratios.append(hat.sum() * 0 if constant else (error - hat).square().sum() / spread)
        return torch.stack(ratios).mean() if ratios else torch.zeros(())

    def _dead_part(self, member: Dictionary, encoded: Encoded, dead: Tensor) -> dict[Site, Tensor]:
        ids = dead.nonzero().squeeze(-1)
        if not len(ids):
            return {}
        z = encoded.pre.detached().top(min(self.k_aux, len(ids)), among=ids)
        return member.decode(z.with_values(z.values.relu()))
