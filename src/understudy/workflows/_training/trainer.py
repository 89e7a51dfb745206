"""Trainer: the state of a run and one step of it. No branch on the kind of dictionary."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.core.dictionary import Acts, Group
from understudy.core.objective import Objective, OnSequences, TrainingState
from understudy.core.records.errors import BadWeights, NonFiniteLoss
from understudy.core.sparsity import Sparsity
from understudy.core.weights import load_tensors, save_tensors
from understudy.workflows._training.resample import Resample


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the share of the run that is done: warm-up, constant, linear decay to 0."""

    peak: float
    warmup: float = 0.02
    decay: float = 0.25

    def __call__(self, done: float) -> float:
        rising = min(1.0, (done + 1e-9) / self.warmup) if self.warmup else 1.0
        falling = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return self.peak * rising * max(0.0, falling)


@dataclass
class Trainer:
    """Groups, their optimisers, averages and counters. Saved and loaded whole; see `save` and `load`."""

    groups: Sequence[Group]
    objective: Objective
    states: list[TrainingState]
    schedule: Schedule
    total_places: int
    dead_after: int
    ema: float
    resample: Resample | None = None
    """Gives dead latents a new start now and then."""
    step: int = 0
    places: int = 0
    silent: list[list[Tensor]] = field(default_factory=list)
    """For each group and member, places since each latent last fired."""
    optimisers: list[torch.optim.Adam] = field(default_factory=list)
    averages: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for group in self.groups:
            parameters = list(group.parameters())
            # eps as in Gao et al. 2024; the default would dominate gradients this small.
            rates = _by_rate(group)
            self.optimisers.append(torch.optim.Adam(rates, lr=self.schedule(0), eps=6.25e-10, fused=True))
            self.averages.append([torch.zeros_like(p) for p in parameters] if self.ema else [])
            at = parameters[0].device
            self.silent.append([torch.zeros(m.n_latents, dtype=torch.long, device=at) for m in group.members])

    def train_step(self, acts: Acts, run: OnSequences | None = None) -> list[dict[str, Tensor]]:
        """One step of every group on the same rows; returns each group's loss terms, l0 included.

        run: the whole inputs that the rows are the places of, for an objective that needs them. Raises NonFiniteLoss,
        before any weight is touched.
        """
        n = len(next(iter(acts.values())))
        lr = self.schedule(self.places / self.total_places)
        losses = []
        for group, state, silent in zip(self.groups, self.states, self.silent, strict=True):
            state.dead, state.places = [s >= self.dead_after for s in silent], self.places
            state.done = self.places / self.total_places
            encoded = group.encode(acts)
            loss = self.objective(group, acts, encoded, run, state)
            if not math.isfinite(loss.total.item()):
                raise NonFiniteLoss(
                    f"the loss of {group.name} became {loss.total.item()} at step {self.step} (lr {lr:.3g})."
                )
            losses.append((loss, encoded))
        terms = []
        for i, (group, (loss, encoded)) in enumerate(zip(self.groups, losses, strict=True)):
            self._update(i, group, loss.total, lr)
            l0 = sum(e.z.l0().double().mean() for e in encoded)
            for counter, e in zip(self.silent[i], encoded, strict=True):
                counter.add_(n)
                counter[e.z.fires() > 0] = 0
            terms.append(loss.terms | {"l0": torch.as_tensor(l0)})
        self.step += 1
        self.places += n
        if self.resample and self.resample.due(self.places - n, self.places, self.total_places):
            self.resample(self, acts)
        return terms

    def _update(self, i: int, group: Group, total: Tensor, lr: float) -> None:
        optimiser = self.optimisers[i]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        group.before_step()
        for options in optimiser.param_groups:
            options["lr"] = lr * options["factor"]
        optimiser.step()
        group.after_step()
        if self.ema:
            torch._foreach_lerp_(self.averages[i], [p.detach() for p in group.parameters()], 1 - self.ema)

    def dead_share(self) -> list[float]:
        """Share of each group's latents that have been silent for the revival window."""
        return [float(torch.cat([s >= self.dead_after for s in silent]).double().mean()) for silent in self.silent]

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the bias-corrected moving averages in place of the parameters, constraints kept. For the end of a run."""
        if not self.ema or not self.step:
            return
        for group, averages in zip(self.groups, self.averages, strict=True):
            for parameter, average in zip(group.parameters(), averages, strict=True):
                parameter.copy_(average / (1 - self.ema**self.step))
            group.after_step()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, folder: Path, position: dict[str, int]) -> None:
        """Fill a checkpoint folder: weights, optimiser, averages, counters, and where in the data the run is."""
        save_tensors(folder / "weights.safetensors", self._tensors("weights"))
        save_tensors(folder / "optimiser.safetensors", self._tensors("optimiser"))
        variance = [{str(s): v for s, v in state.variance.items()} for state in self.states]
        state = {"step": self.step, "places": self.places, "variance": variance, **position}
        (folder / "state.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore a checkpoint in place; returns the position that was saved with it. Raises BadWeights."""
        state = _read_state(folder / "state.json")
        found = []
        for kind in ("weights", "optimiser"):
            path = folder / f"{kind}.safetensors"
            saved, live = load_tensors(path), self._tensors(kind, create=True)
            alien = [name for name, t in live.items() if name not in saved or saved[name].shape != t.shape]
            if alien:
                raise BadWeights(f"{path} lacks {alien[0]} as this run has it: it belongs to other dictionaries.")
            found += [(tensor, saved[name]) for name, tensor in live.items()]
        for tensor, saved in found:  # only now: nothing is touched by a checkpoint that is not whole
            tensor.data.copy_(saved)
        self.step, self.places = state["step"], state["places"]
        for mine, variance in zip(self.states, state["variance"], strict=True):
            mine.variance = {s: variance[str(s)] for s in mine.variance}
        return state

    def _tensors(self, kind: str, create: bool = False) -> dict[str, Tensor]:
        """Live tensors by name; with `create`, optimiser entries that do not exist yet are made first."""
        out: dict[str, Tensor] = {}
        for i, group in enumerate(self.groups):
            if kind == "weights":
                out |= {f"{i}.{name}": value for name, value in group.state_dict().items()}
                continue
            for j, parameter in enumerate(group.parameters()):
                entry = self.optimisers[i].state[parameter]
                if create and not entry:
                    entry |= {"step": torch.zeros((), device=parameter.device), "exp_avg": torch.zeros_like(parameter)}
                    entry["exp_avg_sq"] = torch.zeros_like(parameter)
                out |= {f"{i}.{j}.{name}": value for name, value in entry.items()}
            out |= {f"{i}.average.{j}": value for j, value in enumerate(self.averages[i])}
            out |= {f"{i}.silent.{j}": value for j, value in enumerate(self.silent[i])}
        return out


def _by_rate(group: Group) -> list[dict[str, Any]]:
    """A group's parameters by the factor on their learning rate, which sparsity rules may set for their own."""
    factors = {p: m.lr_factor for m in group.modules() if isinstance(m, Sparsity) for p in m.parameters()}
    rates: dict[float, list[Tensor]] = {}
    for parameter in group.parameters():
        rates.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in rates.items()]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWeights(f"{path} is missing or was cut short: {error}.") from None
    lacks = {"step", "places", "variance"} - set(state if isinstance(state, dict) else ())
    if lacks:
        raise BadWeights(f"{path} lacks {', '.join(sorted(lacks))}.")
    return state
