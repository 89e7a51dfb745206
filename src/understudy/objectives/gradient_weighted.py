"""Gradient-weighted: errors count by what they do to the output to first order, so that variance nobody reads is free.

For an error e at a place and a vector g = J^T v, J the Jacobian of the output by the activation there, the mean of
(g . e)^2 over draws of v with E[v v^T] = F is e^T J^T F J e: twice the divergence that e causes, to second order. F is
the Fisher information of the output: v is the gradient of the log-probability of an output drawn from the network's own
distribution (Martens 2014, arXiv:1412.1193, section 5: the Gauss-Newton matrix), or random signs over sqrt(n) for
outputs that are numbers and are compared by mean squared difference. Every error is weighed by the g of all places of
the batch, that is by their mean Fisher information: with the one g of its own place training was measured to fail, as
one direction of one draw says too little (docs/log.md). Weighting by squared gradients is old in compression, there by
coordinate or row (Hsu et al. 2022, arXiv:2207.00112); the whole matrix does not depend on the basis. It does not see
what differs between places, or what an error would switch on; `EndToEnd` does."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.latents import Encoded
from understudy.core.objective import Loss, OnSequences, TrainingState
from understudy.core.site import Site
from understudy.objectives.local_fvu import LocalFVU, fvu_by_site


@dataclass(frozen=True)
class GradientWeighted:
    """Mean over sites of mean e^T G e / mean (y - mean y)^T G (y - mean y), G the mean of g g^T, all over the batch: 0
    where no error reaches the output to first order, 1 for the mean in the activation's place. + `local_weight` x FVU +
    what `local` adds."""

    probes: int = 1
    """Vectors v drawn for each input, each a pass back through the network."""
    local_weight: float = 0.1
    """Keeps the error small where the output has no slope."""
    seed: int = 0
    local: LocalFVU = field(default_factory=LocalFVU)
    needs: Literal["rows", "sequences"] = "sequences"

    def __call__(
        self, group: Group, acts: Acts, encoded: list[Encoded], run: OnSequences | None, state: TrainingState
    ) -> Loss:
        assert run is not None, "an objective that needs sequences gets them"
        hats = group.write([e.z for e in encoded], acts)
        slopes = gradients(run, group.writes, self.probes, self.seed * 1_000_003 + state.places)
        shares = []
        for site, hat in hats.items():
            g = torch.cat([probe[site] for probe in slopes])
            G = g.T @ g
            centred = acts[site] - acts[site].mean(0)
            shares.append(_size(acts[site] - hat, G) / _size(centred, G).clamp(min=torch.finfo(G.dtype).tiny))
        weighted = torch.stack(shares).mean()
        fvu = torch.stack(list(fvu_by_site(acts, hats, state).values())).mean()
        terms = {"fvu": fvu.detach(), "weighted": weighted.detach()}
        total = weighted + self.local_weight * fvu if self.local_weight else weighted
        return self.local.with_extras(Loss(total, terms), group, acts, encoded, hats, state)


def _size(rows: Float[Tensor, "rows d"], G: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    return (rows @ G.to(rows.dtype) * rows).sum()


def gradients(
    run: OnSequences, sites: tuple[Site, ...], probes: int, seed: int
) -> list[dict[Site, Float[Tensor, "rows d"]]]:
    """For each probe the vectors g = J^T v of every place that counts, from one pass of the network."""
    network, batch = run.network, run.batch
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    network.prepare(batch)
    with torch.enable_grad(), network.edited({s: partial(_watch, found[s]) for s in sites}):
        scores = network.scores(network.forward(batch))
    draws = torch.Generator(scores.device).manual_seed(seed % (1 << 63))
    values = [value for site in sites for value in found[site]]
    out = []
    for probe in range(probes):
        v = _score_of_a_draw(scores.detach(), network.divergence_unit, draws)
        slopes = iter(torch.autograd.grad(scores, values, v, retain_graph=probe + 1 < probes))
        rows = {s: network.stack(s, [next(slopes) for _ in found[s]], batch.n_sequences) for s in sites}
        counted = slice(None) if batch.mask is None else batch.mask.reshape(-1)
        out.append({s: g.flatten(0, -2)[counted].float() for s, g in rows.items()})
    return out


def _watch(values: list[Tensor], value: Tensor, call: int) -> Tensor:
    """The value itself, as something to differentiate by; what comes before it needs no gradient of its own."""
    if not value.requires_grad:
        value = value.detach().requires_grad_()
    values.append(value)
    return value


def _score_of_a_draw(scores: Tensor, unit: str, draws: torch.Generator) -> Tensor:
    """v: the gradient of log p by the scores at an output drawn from p, or random signs / sqrt(n) for numbers."""
    if unit != "nats":
        signs = torch.randint(0, 2, scores.shape, generator=draws, device=scores.device)
        return (2 * signs - 1).to(scores.dtype) / scores.shape[-1] ** 0.5
    p = scores.float().softmax(-1)
    drawn = torch.multinomial(p.flatten(0, -2), 1, generator=draws).view(p.shape[:-1])
    return (torch.nn.functional.one_hot(drawn, p.shape[-1]) - p).to(scores.dtype)
