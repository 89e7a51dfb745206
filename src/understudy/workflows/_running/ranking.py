"""Which latents stay: rankings of all latents of all dictionaries, by what they do over a data set.

Everything is measured on training data, never on what is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.dictionary import Dictionary, Group
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.errors import BadData
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.replacement import Replacement

BATCH = 8


@dataclass(frozen=True)
class Importance:
    """Means over places, [n_latents] for each dictionary, fp64."""

    effect: dict[Dictionary, Tensor]
    """|activation x gradient of the loss|: to first order, the nats that dropping the latent at one place changes."""
    mass: dict[Dictionary, Tensor]
    """|activation| x length of the latent's atom over all written sites: how much it writes."""
    rate: dict[Dictionary, Tensor]
    """Share of places where it is on."""


@dataclass(frozen=True)
class Ranking:
    """Latents of several dictionaries, best first: the first n are the graph of size n."""

    groups: Sequence[Group]
    owner: Tensor
    """Index of the dictionary among all members, [n_ranked]."""
    latent: Tensor

    def __len__(self) -> int:
        return len(self.owner)

    def first(self, n: int) -> dict[Dictionary, Tensor]:
        """The n best, by dictionary."""
        owner, latent = self.owner[:n], self.latent[:n]
        return {d: latent[owner == i].sort().values for i, d in enumerate(_members(self.groups))}


def by_score(groups: Sequence[Group], scores: dict[Dictionary, Tensor]) -> Ranking:
    """Latents of score 0 and above, highest first."""
    flat = torch.cat([scores[m] for m in _members(groups)])
    return _ranking(groups, flat.argsort(descending=True, stable=True)[: int((flat >= 0).sum())])


def at_random(groups: Sequence[Group], scores: dict[Dictionary, Tensor], seed: int) -> Ranking:
    """A random order of latents of score 0 and above; those of 0 (they never fired) come last, so that the control is
    not made weak."""
    flat = torch.cat([scores[m] for m in _members(groups)])
    drawn = torch.rand(len(flat), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _ranking(groups, (drawn + flat.sign()).argsort(descending=True)[: int((flat >= 0).sum())])


def _ranking(groups: Sequence[Group], order: Tensor) -> Ranking:
    members = _members(groups)
    owner = torch.cat([torch.full((m.n_latents,), i) for i, m in enumerate(members)])
    latent = torch.cat([torch.arange(m.n_latents) for m in members])
    return Ranking(groups, owner[order], latent[order])


def _members(groups: Sequence[Group]) -> list[Dictionary]:
    return [m for g in groups for m in g.members]


def importance(
    network: Network, groups: Sequence[Group], sequences: Sequences, picked: Tensor, progress: Progress
) -> Importance:
    """One forward and backward pass with the groups in the network's place, over the sequences `picked`.

    Raises BadData for a network without a loss.
    """
    members = _members(groups)

    def new_zeros(member: Dictionary) -> Tensor:
        return torch.zeros(member.n_latents, dtype=torch.float64, device=network.device)

    replacement = Replacement(network, groups)
    effect, mass, fires = ({m: new_zeros(m) for m in members} for _ in range(3))
    n_places = 0
    with progress.task("ranking latents", len(picked), "sequences") as task:
        for i in range(0, len(picked), BATCH):
            batch = sequences.batch(picked[i : i + BATCH]).to(network.device)
            scored = _counted(batch)
            n_places += int(scored.sum())
            for member, calls in _with_gradients(network, replacement, batch):
                for call, z in enumerate(calls):
                    here = _places(scored, z, call)[z.rows]
                    ids, values = z.ids[here], z.values.detach()[here].double()
                    grad = z.values.grad
                    gradient = torch.zeros_like(values) if grad is None else grad[here].double()
                    effect[member].index_add_(0, ids, (values * gradient).abs())
                    mass[member].index_add_(0, ids, values.abs())
                    fires[member].index_add_(0, ids, (values != 0).double())
            task.update(i + len(scored))
    for member in members:
        atoms = member.atoms(torch.arange(member.n_latents, device=network.device)).values()
        length = sum(a.double().square().sum(-1) for a in atoms).sqrt()  # pyright: ignore[reportAttributeAccessIssue]
        mass[member] *= length.detach() / n_places
        effect[member] /= n_places
        fires[member] /= n_places
    return Importance(*({m: x.cpu() for m, x in found.items()} for found in (effect, mass, fires)))


def _with_gradients(network: Network, replacement: Replacement, batch: Batch):
    """Each dictionary's latents after the backward pass of the summed loss; `values.grad` is filled."""

    def watch(z: Latents) -> Latents:
        values = z.values if z.values.requires_grad else z.values.detach().clone().requires_grad_()
        values.retain_grad()
        return z.with_values(values)

    with torch.enable_grad():
        run = replacement.run(batch, edits=dict.fromkeys(_members(replacement.groups), watch))
        loss = network.loss(run.output, batch)
        if isinstance(loss, NotMeasured):
            raise BadData(f"latents are ranked by the gradient of a loss: {loss.not_measured}.")
        loss.sum().backward()
    return run.latents.items()


def _counted(batch: Batch) -> Tensor:
    """Places that count: real ones, [batch, *places]. Those without a target have an effect on later ones."""
    if batch.mask is not None:
        return batch.mask
    like = batch.targets if batch.targets is not None else next(iter(batch.inputs.values()))
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def _places(counted: Tensor, z: Latents, call: int) -> Tensor:
    """Which of z's rows count; all of them where its places are others than the batch's (a convolution's pixels)."""
    if counted.shape == z.shape:
        return counted.reshape(-1)
    if len(z.shape) == 1 and counted.dim() == 2:
        return counted[:, call]
    return torch.ones(torch.Size(z.shape).numel(), dtype=torch.bool, device=z.ids.device)
