"""End to end: how far the network's output moves with the group in its place, not how far its activations do
(Braun et al. 2024, arXiv:2405.12241, e2e; with `local_weight` in the spirit of their e2e + ds)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.latents import Encoded
from understudy.core.objective import Loss, OnSequences, TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.records.metric import NotMeasured
from understudy.objectives.local_fvu import LocalFVU, fvu_by_site


@dataclass(frozen=True)
class EndToEnd:
    """`kl`: mean divergence from the network's own output, nats per place; `loss`: mean loss on the data.

    + `local_weight` x FVU + what `local` adds. Coefficients of penalties weigh against nats here, not against FVU.
    """

    measure: Literal["kl", "loss"] = "kl"
    local_weight: float = 0.0
    local: LocalFVU = field(default_factory=LocalFVU)
    needs: Literal["rows", "sequences"] = "sequences"

    def __call__(
        self, group: Group, acts: Acts, encoded: list[Encoded], run: OnSequences | None, state: TrainingState
    ) -> Loss:
        assert run is not None, "an objective that needs sequences gets them"
        far = self.behaviour(run, run.replaced(group))
        hats = group.write([e.z for e in encoded], acts)
        fvu = torch.stack(list(fvu_by_site(acts, hats, state).values())).mean()
        terms = {"fvu": fvu.detach(), self.measure: far.detach()}
        total = far + self.local_weight * fvu if self.local_weight else far
        return self.local.with_extras(Loss(total, terms), group, acts, encoded, hats, state)

    def behaviour(self, run: OnSequences, output: object) -> Float[Tensor, ""]:
        """Nats per place that counts. Raises BadInput where the network has no loss."""
        batch = run.batch
        if self.measure == "kl":
            far = run.network.divergence(run.clean, output, batch)
            mask = None if batch.mask is None else batch.mask
            return far.mean() if mask is None or mask.shape != far.shape else far[mask].mean()
        loss = run.network.loss(output, batch)
        if isinstance(loss, NotMeasured):
            raise BadInput(f"{loss.not_measured}: train with the objective `kl` or a local one.")
        scored = loss.numel() if batch.targets is None else int((batch.targets != -100).sum())
        return loss.sum() / max(1, scored)
