"""Local reconstruction with AuxK: the fraction of variance unexplained at each written site, plus what dead latents
could explain of the error (Gao et al. 2024, arXiv:2406.04093, section 2 and A.2), plus what the sparsity rule adds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Dictionary, Group
from understudy.core.latents import Encoded
from understudy.core.objective import Loss, OnSequences, TrainingState
from understudy.core.site import Site
from understudy.core.sparsity import Also


@dataclass(frozen=True)
class LocalFVU:
    """Mean over sites of `|y - y_hat|^2 / Var[y]` (variance fixed at the start), + `aux_weight` x AuxK, + the rule's
    penalties (mean over members) and the FVU of the other latents it wants to rebuild with."""

    k_aux: int = 0
    """Dead latents used at each place by AuxK; 0 turns it off."""
    aux_weight: float = 1 / 32
    needs: Literal["rows", "sequences"] = "rows"

    def __call__(
        self,
        group: Group,
        acts: Acts,
        encoded: list[Encoded],
        run: OnSequences | None,
        state: TrainingState,
    ) -> Loss:
        hats = group.write([e.z for e in encoded], acts)
        fvu = fvu_by_site(acts, hats, state)
        mean_fvu = torch.stack(list(fvu.values())).mean()
        terms = {"fvu": mean_fvu.detach()}
        if len(fvu) > 1:
            terms |= {f"fvu/{s}": v.detach() for s, v in fvu.items()}
        return self.with_extras(Loss(mean_fvu, terms), group, acts, encoded, hats, state)

    def with_extras(
        self, loss: Loss, group: Group, acts: Acts, encoded: list[Encoded], hats: Acts, state: TrainingState
    ) -> Loss:
        """A loss plus what every objective adds to it: AuxK, the rule's penalties and its other latents."""
        total, terms = loss.total, dict(loss.terms)
        if self.k_aux and any(bool(d.any()) for d in state.dead):
            errors = {s: (acts[s] - hat).detach() for s, hat in hats.items()}
            aux = self.auxiliary(group, encoded, errors, state)
            terms["aux"] = aux.detach()
            total = total + self.aux_weight * aux
        for name, value in _penalties(group, encoded, state).items():
            terms[name] = value.detach()
            total = total + value
        for name, weight, value in _other_latents(group, acts, encoded, state):
            terms[f"fvu/{name}"] = value.detach()
            total = total + weight * value
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


def fvu_by_site(acts: Acts, hats: Acts, state: TrainingState) -> dict[Site, Float[Tensor, ""]]:
    """Mean squared error of each written site over its total variance."""
    return {s: (acts[s] - hat).square().sum(-1).mean() / state.variance[s] for s, hat in hats.items()}


def _penalties(group: Group, encoded: list[Encoded], state: TrainingState) -> dict[str, Tensor]:
    """Penalties by name, mean over members."""
    out: dict[str, Tensor] = {}
    for i, (member, e) in enumerate(zip(group.members, encoded, strict=True)):
        dead = state.dead[i] if state.dead else None
        for name, value in member.penalty(e, lambda m=member: _norms(m, group, state), dead, state.done).items():
            value = value / len(group.members)
            out[name] = out[name] + value if name in out else value
    return out


def _norms(member: Dictionary, group: Group, state: TrainingState) -> Float[Tensor, " L"]:
    """Lengths of a member's atoms, so that the mean over members is a sum over layers over the number of sites.

    One site: the length. A crosscoder: the mean over sites (Lindsey et al. 2024 sum both this and the errors). A
    cross-layer transcoder: the sum over sites (Ameisen et al. 2025 take the length of the whole).
    """
    atoms = member.atoms(torch.arange(member.n_latents))
    lengths = [a.norm(dim=-1) / state.variance[s] ** 0.5 for s, a in atoms.items()]
    return torch.stack(lengths).sum(0) * (len(group.members) / len(group.writes))


def _other_latents(
    group: Group, acts: Acts, encoded: list[Encoded], state: TrainingState
) -> Iterator[tuple[str, float, Tensor]]:
    """Name, weight and FVU of each other set of latents; a member without one takes part with its own."""
    others = [member.also(e) for member, e in zip(group.members, encoded, strict=True)]
    for row in zip_longest(*others):
        first: Also = next(also for also in row if also is not None)
        zs = [e.z if also is None else also.z for also, e in zip(row, encoded, strict=True)]
        with _held(group, first.fixed_decoder):
            hats = group.write(zs, acts)
        fvu = fvu_by_site(acts, hats, state)
        yield first.name, first.weight, torch.stack(list(fvu.values())).mean()


@contextmanager
def _held(group: Group, fixed: bool) -> Iterator[None]:
    """Inside, the group's parameters get no gradient from what is computed with them."""
    learned = [p for p in group.parameters() if p.requires_grad and fixed]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
