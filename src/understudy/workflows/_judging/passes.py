"""One pass over the evaluation sequences: every arm on the same places, summed by sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Context, Group
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.errors import AcausalReplacement
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.replacement import STANDALONE, Recording, Replacement, Run
from understudy.core.site import Site
from understudy.data import Column
from understudy.metrics import ArmSums, Reconstruction, Sparsity
from understudy.workflows._judging.arms import Arm

BATCH = 8
UNDERSTUDY, CLEAN = "understudy", "clean"


@dataclass
class Local:
    """A group's own figures on the network's activations, before anything is replaced."""

    group: Group
    sites: dict[Site, Reconstruction]
    sparsity: list[Sparsity]
    norms: dict[Site, list[Tensor]] = field(default_factory=dict)
    """Norms of the activations at each written site, of places that do not count too, but not of padding."""

    def mean_l0(self, site: Site) -> float:
        """Latents on at a place, of the member that writes `site` first; of all members if none does."""
        own = [s for m, s in zip(self.group.members, self.sparsity, strict=True) if m.writes[0] == site]
        return sum(float(s.fires.sum()) / max(1, s.n_places) for s in own or self.sparsity)


def local_pass(
    network: Network, groups: Sequence[Group], sequences: Sequences, picked: Tensor, progress: Progress
) -> list[Local]:
    """Reconstruction and sparsity of every group over the sequences `picked`."""
    n = len(picked)
    out = [
        Local(g, {s: Reconstruction(s, n) for s in g.writes}, [Sparsity(n, m.n_latents) for m in g.members])
        for g in groups
    ]
    sites = [s for g in groups for s in (*g.reads, *g.writes)]
    with progress.task("local figures", n, "sequences") as task:
        for i in range(0, n, BATCH):
            at = torch.arange(i, min(i + BATCH, n))
            batch = sequences.batch(picked[at]).to(network.device)
            acts = network.record(batch, sites)
            for local in out:
                encoded = local.group.encode(acts, Context(batch.inputs, batch.mask))
                for site in local.group.writes:
                    local.norms.setdefault(site, []).append(_norms(acts[site], batch))
                for site, hat in local.group.write([e.z for e in encoded], acts).items():
                    local.sites[site].update(acts[site].float(), hat, at, _places(batch.mask, hat))
                for counter, e in zip(local.sparsity, encoded, strict=True):
                    counter.update(e.z, at, _places(batch.mask, e.z))
            task.update(i + len(at))
    return out


def _norms(acts: Tensor, batch: Batch) -> Tensor:
    norms, attended = acts.float().norm(dim=-1), batch.inputs.get("attention_mask")
    return (norms if attended is None or attended.shape != norms.shape else norms[attended.bool()]).flatten().cpu()


def _places(mask: Tensor | None, value: Any) -> Tensor | None:
    """The mask where it has the value's places (a convolution's pixels have none)."""
    shape = value.shape[:-1] if isinstance(value, Tensor) else value.shape
    return mask if mask is not None and mask.shape == shape else None


@dataclass
class Judged:
    """What one pass over the evaluation sequences gives: sums of every arm, and the latents each arm spent."""

    sums: dict[str, ArmSums]
    l0: dict[str, np.ndarray]
    """Latents on, summed over real places and averaged over an arm's dictionaries, [n_sequences]."""
    places: np.ndarray
    """Places of each sequence that count."""
    labels: Sequence[Column] = ()
    """What the sums are sliced by."""


def tag(column: Column) -> str:
    """The name of a column among the sums, where `position` is taken."""
    return f"label:{column.name}"


@torch.no_grad()
def behaviour_pass(
    network: Network,
    groups: Sequence[Group],
    arms: Sequence[Arm],
    sequences: Sequences,
    picked: Tensor,
    labels: Sequence[Column],
    progress: Progress,
) -> Judged | NotMeasured:
    """Sums for `clean`, `understudy` and every arm, whole and by the labels of the predicted tokens.

    NotMeasured if the understudy cannot run in the network's place (an acausal crosscoder).
    """
    runs = {UNDERSTUDY: Replacement(network, groups)} | {a.name: Replacement(network, a.groups) for a in arms}
    partner = {a.name for a in arms if a.from_partner}
    tags = {tag(c): c.values for c in labels}
    sums = {name: ArmSums(name, len(picked), tags) for name in (CLEAN, *runs)}
    n = len(picked)
    judged = Judged(sums, {name: np.zeros(n) for name in runs}, np.zeros(n), labels)
    with progress.task("running arms", n * len(sums), "sequences") as task:
        for i in range(0, n, BATCH):
            at = torch.arange(i, min(i + BATCH, n))
            batch = sequences.batch(picked[at]).to(network.device)
            other = sequences.batch(picked[(at + n // 2) % n]).to(network.device)
            clean = network.forward(batch)
            codes = {tag(c): c.codes[picked[at]] for c in labels}
            _add(sums[CLEAN], network, batch, at, clean, clean, codes)
            judged.places[at.numpy()] = _real(batch).flatten(1).sum(1).cpu().numpy()
            for j, (name, replacement) in enumerate(runs.items()):
                recording = _partner(replacement, other) if name in partner else None
                try:
                    run = replacement.run(batch, STANDALONE, recording)
                except AcausalReplacement as error:
                    return NotMeasured(not_measured=str(error))
                _add(sums[name], network, batch, at, clean, run.output, codes)
                judged.l0[name][at.numpy()] = _spent(run, _real(batch))
                task.update(i * len(sums) + len(at) * (j + 2), name)
    return judged


def _real(batch: Batch) -> Tensor:
    """True at the places of the batch that count."""
    like = batch.targets if batch.targets is not None else next(iter(batch.inputs.values()))
    return batch.mask if batch.mask is not None else torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def _spent(run: Run, real: Tensor) -> np.ndarray:
    """Latents on in each sequence: a place of the dictionary's own spends so many, times the places that count.

    The mean over dictionaries. A dictionary called over time has one Latents a call; one whose places are not those of
    the behaviour (patches of an image, pixels) counts all of them.
    """
    n = real.reshape(len(real), -1).sum(1)
    return torch.stack([_at_a_place(calls, real) * n for calls in run.latents.values()]).mean(0).cpu().numpy()


def _at_a_place(calls: Sequence[Latents], real: Tensor) -> Tensor:
    """Latents on at a place, the mean over each sequence."""
    on, places = 0.0, 0.0
    for z in calls:
        counted = real if z.shape == real.shape else torch.ones(z.shape, dtype=torch.bool, device=real.device)
        on = on + (z.l0() * counted).reshape(len(real), -1).sum(1).double()
        places = places + counted.reshape(len(real), -1).sum(1)
    return on / torch.as_tensor(places).clamp(min=1)


def _partner(replacement: Replacement, batch: Batch) -> Recording:
    values = replacement.network.record_calls(batch, replacement.sites)
    rows, n = replacement.network.rows, batch.n_sequences
    acts = {(s, c): rows(s, v, n) for s, calls in values.items() for c, v in enumerate(calls)}
    return Recording(acts, {}, {})


def _add(
    sums: ArmSums, network: Network, batch: Batch, at: Tensor, clean: Any, output: Any, codes: dict[str, Tensor]
) -> None:
    loss = network.loss(output, batch)
    kl = network.divergence(clean, output, batch)
    choices = network.choice(output)
    own = network.choice(clean)
    agree = torch.eq(choices, own) if isinstance(choices, Tensor) and isinstance(own, Tensor) else None
    if batch.targets is not None:
        scored = (batch.targets != -100) & _real(batch)
    else:
        scored = batch.mask if batch.mask is not None else torch.ones_like(kl, dtype=torch.bool)
    position = torch.arange(kl.shape[1]).expand(kl.shape[:2]) if kl.dim() == 2 else None
    sums.add(
        at, scored,
        loss=None if isinstance(loss, NotMeasured) else loss,
        kl=kl, agree=agree, position=position,
        tags=codes,
    )  # fmt: skip
