"""Stochastic masks: whatever share of the components that a place does not need is left in, the network's output must
stay (Bushnaq et al. 2025, "Stochastic Parameter Decomposition", arXiv:2506.20790, sections 2.2 to 2.4).

Component c of a Linear is let through by m = g + (1 - g) u with u ~ U(0, 1), g its gate on the network's own
activations; the delta component by a u of its own, as nothing may need it. Differs from the paper: the delta component
(its authors' later code); the masks of the two reconstruction terms are drawn apart, as in their code."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.core.dictionary import Acts, Dictionary, Group
from understudy.core.latents import Encoded, Pre
from understudy.core.objective import Loss, OnSequences, TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.sparsity import check_coefficient
from understudy.objectives.end_to_end import EndToEnd
from understudy.objectives.local_fvu import fvu_by_site


@runtime_checkable
class Maskable(Protocol):
    """What the objective asks of a dictionary: parameter components of one Linear."""

    def importances(self, pre: Pre) -> tuple[Float[Tensor, "R L"], Float[Tensor, ""]]:
        """How far each gate is open, in [0, 1], and what open gates cost."""
        ...

    def masked(self, mask: Float[Tensor, "R L"], delta_mask: Float[Tensor, " R"]) -> Dictionary: ...

    def delta(self) -> Float[Tensor, "d_in d_out"]: ...


@dataclass(frozen=True)
class StochasticMasks:
    """Mean divergence of the output with every Linear masked, + `layerwise` x the mean of it with one Linear masked at
    a time, + `faithfulness` x the mean square of the delta components' entries, + the price of open gates."""

    layerwise: float = 1.0
    faithfulness: float = 0.0
    """The delta component asks for it already; added to that it was measured to slow recovery (docs/log.md)."""
    seed: int = 0
    needs: Literal["rows", "sequences"] = "sequences"

    def __post_init__(self) -> None:
        check_coefficient("layerwise", self.layerwise)
        check_coefficient("faithfulness", self.faithfulness)

    def __call__(
        self, group: Group, acts: Acts, encoded: list[Encoded], run: OnSequences | None, state: TrainingState
    ) -> Loss:
        assert run is not None, "an objective that needs sequences gets them"
        members = [_maskable(m) for m in group.members]
        found = [m.importances(e.pre) for m, e in zip(members, encoded, strict=True)]
        gates, prices = [g for g, _ in found], [price for _, price in found]
        draws = self._draws(gates[0].device, state.places)
        where = run.batch.mask
        every = [_masked(m, g, draws, where) for m, g in zip(members, gates, strict=True)]
        terms = {"stochastic": _moved(run, every)}
        total = terms["stochastic"]
        if self.layerwise and len(members) > 1:
            alone = [_moved(run, [_masked(m, g, draws, where)]) for m, g in zip(members, gates, strict=True)]
            terms["layerwise"] = torch.stack(alone).mean()
            total = total + self.layerwise * terms["layerwise"]
        deltas = torch.cat([m.delta().flatten() for m in members])
        terms["faithfulness"] = deltas.square().mean()
        terms["importance"] = torch.stack(prices).sum()
        total = total + self.faithfulness * terms["faithfulness"] + terms["importance"]
        return Loss(total, {"fvu": _fvu(group, acts, encoded, state)} | {k: v.detach() for k, v in terms.items()})

    def _draws(self, device: torch.device, places: int) -> torch.Generator:
        """Random numbers of this step alone, so that a resumed run draws the same."""
        return torch.Generator(device).manual_seed((self.seed * 1_000_003 + places) % (1 << 63))


def _maskable(member: Dictionary) -> Maskable:
    if not isinstance(member, Maskable):
        raise BadInput(
            f"stochastic masks are for the parts of a weight, and {member} has none: --kind components, or another "
            "--objective."
        )
    return member


def _masked(
    member: Maskable, gates: Float[Tensor, "R L"], draws: torch.Generator, where: Bool[Tensor, " batch *places"] | None
) -> Dictionary:
    open_share = gates.new_empty(gates.shape).uniform_(generator=draws)
    delta_mask = gates.new_empty(len(gates)).uniform_(generator=draws)
    return member.masked(_spread(gates + (1 - gates) * open_share, where), _spread(delta_mask, where))


def _spread(rows: Tensor, where: Bool[Tensor, " batch *places"] | None) -> Tensor:
    """Rows of the places that count, among all places; 0 at the others, which keep the network's own activations."""
    if where is None or bool(where.all()):
        return rows
    index = where.reshape(-1).nonzero().squeeze(-1)
    return rows.new_zeros(where.numel(), *rows.shape[1:]).index_copy(0, index, rows)


def _moved(run: OnSequences, members: list[Dictionary]) -> Float[Tensor, ""]:
    return EndToEnd("kl").behaviour(run, run.replaced(Group(members)))


@torch.no_grad()
def _fvu(group: Group, acts: Acts, encoded: list[Encoded], state: TrainingState) -> Float[Tensor, ""]:
    """With the gates as they are for masks, and the whole delta component: a monitor, never a loss."""
    hats = group.write([e.z for e in encoded], acts)
    return torch.stack(list(fvu_by_site(acts, hats, state).values())).mean()
