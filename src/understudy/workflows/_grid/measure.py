"""What each cell does on held-out sequences, as sums by sequence that any figure is made from later."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.objective import TrainingState
from understudy.core.records.artifact import RunFolder
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.weights import load_tensors, save_tensors
from understudy.metrics import Reconstruction
from understudy.workflows._grid.together import Bench, Made
from understudy.workflows._judging.arms import Arm
from understudy.workflows._judging.passes import CLEAN, UNDERSTUDY, behaviour_pass, local_pass

SUMS = "sums.safetensors"
"""Written last: a cell that has it is done."""
SELECTION = "selection.json"
FORMS = ("thresholds", "trained")
"""A dictionary as it is used, with a threshold for each latent, and under the rule it was trained with."""


@dataclass(frozen=True)
class Judging:
    """Held-out sequences: those that figures rest on, and others that learning rates are chosen on."""

    sequences: Sequences
    judged: Tensor
    chosen_on: Tensor


@dataclass(frozen=True)
class Sums:
    """One dictionary over the judged sequences, one entry for each."""

    reconstruction: Reconstruction
    active: np.ndarray
    """Latents on, summed over places."""
    fires: np.ndarray
    """Places at which each latent is on, one entry for each latent."""
    loss: np.ndarray | None = None
    """Nats, summed over scored places; None where it cannot run or the network has no loss."""
    clean: np.ndarray | None = None
    """The network's own."""
    scored: np.ndarray | None = None


def measure(
    bench: Bench, made: Sequence[Made], judging: Judging, progress: Progress
) -> Iterator[tuple[Made, Callable[[], None]]]:
    """Each cell with what writes its sums, in both forms, and the loss that its learning rate is chosen by."""
    if not made:
        return
    forms = {f"{form}.{m.config.out.name}": group for m in made for form, group in _forms(m).items()}
    with torch.no_grad():
        local = local_pass(bench.network, list(forms.values()), judging.sequences, judging.judged, progress)
    first, *others = forms.items()
    arms = [Arm(name, [group]) for name, group in others]
    behaviour = behaviour_pass(bench.network, [first[1]], arms, judging.sequences, judging.judged, [], progress)
    sums = {}
    for (name, _), own in zip(forms.items(), local, strict=True):
        (reconstruction,) = own.sites.values()
        (counter,) = own.sparsity
        active, _ = counter.by_sequence()
        found = Sums(reconstruction, active, counter.fires)
        if not isinstance(behaviour, NotMeasured) and "loss" in behaviour.sums[CLEAN].sums:
            arm, clean = behaviour.sums[UNDERSTUDY if name == first[0] else name], behaviour.sums[CLEAN]
            losses = (arm.sums["loss"][0], clean.sums["loss"][0], clean.count[0])
            found = Sums(reconstruction, active, counter.fires, *losses)
        sums[name] = found
    for m in made:
        own = {form: sums[f"{form}.{m.config.out.name}"] for form in _forms(m)}
        yield m, partial(_write, RunFolder(m.config.out), own, _selection(bench, m, judging))


def _write(folder: RunFolder, forms: dict[str, Sums], selection: float) -> None:
    folder.write_json(SELECTION, {"loss": selection})
    folder.write(SUMS, lambda path: save_tensors(path, _tensors(forms)))


def _forms(made: Made) -> dict[str, Group]:
    """`trained` only where it is something else than thresholds."""
    competes = any(not m.sparsity.is_thresholded for m in made.trained.members)  # pyright: ignore
    return {"thresholds": made.final} | ({"trained": made.trained} if competes else {})


@torch.no_grad()
def _selection(bench: Bench, made: Made, judging: Judging) -> float:
    """The loss that the cell was trained on, penalties included, on sequences that no figure rests on."""
    batch = judging.sequences.batch(judging.chosen_on).to(bench.network.device)
    group, (state,) = made.trained, made.trainer.states
    acts = {s: v.flatten(0, -2).float() for s, v in bench.network.record(batch, bench.what.sites).items()}
    if batch.mask is not None:
        acts = {s: v[batch.mask.reshape(-1)] for s, v in acts.items()}
    silent = [torch.zeros(m.n_latents, dtype=torch.bool, device=bench.network.device) for m in group.members]
    at_end = TrainingState(state.variance, silent, made.config.tokens, 1.0)
    return float(made.trainer.objective(group, acts, group.encode(acts), None, at_end).total)


def _tensors(forms: dict[str, Sums]) -> dict[str, Tensor]:
    out = {}
    for form, sums in forms.items():
        r = sums.reconstruction
        assert r.reference is not None
        arrays = {"n": r.n, "squares": r.squares, "errors": r.errors, "moved": r.moved, "reference": r.reference}
        arrays |= {"active": sums.active, "fires": sums.fires}
        arrays |= {"loss": sums.loss, "clean": sums.clean, "scored": sums.scored}
        out |= {f"{form}.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items() if v is not None}
    return out


def read_sums(folder: Path, site: str) -> dict[str, Sums]:
    """What `measure` wrote, by form. Raises BadWeights."""
    tensors = {k: v.numpy() for k, v in load_tensors(folder / SUMS).items()}
    out = {}
    for form in FORMS:
        own = {k.removeprefix(f"{form}."): v for k, v in tensors.items() if k.startswith(f"{form}.")}
        if not own:
            continue
        r = Reconstruction(site, len(own["n"]), own["reference"])
        r.n, r.squares, r.errors, r.moved = own["n"], own["squares"], own["errors"], own["moved"]
        out[form] = Sums(r, own["active"], own["fires"], own.get("loss"), own.get("clean"), own.get("scored"))
    return out
