"""Arms: what is put in the network's place besides the understudy - ablations, and rivals at the measured L0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from understudy.baselines import PCA, Constant, LinearMap, PositionMean, RandomDictionary, Resample, TopNeurons
from understudy.core.batch import Sequences
from understudy.core.dictionary import Dictionary, Group
from understudy.core.network import Network
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.data import Order
from understudy.sparsity import Identity, TopK

FIT_PLACES = 32_768
"""Rows rivals are fitted on, at least; more for sites wider than a 20th of this."""
ABLATIONS = ("zero", "mean", "position_mean", "resample")


@dataclass(frozen=True)
class Target:
    """One written site, what its module reads, and the understudy's budget there."""

    read: Site
    write: Site
    l0: float
    n_latents: int


@dataclass(frozen=True)
class Arm:
    """Groups that replace every target at once."""

    name: str
    groups: list[Group]
    from_partner: bool = False
    """Runs with a recording of other sequences (resample ablation)."""
    is_oracle: bool = False
    note: str = ""


def targets(groups: Sequence[Group], l0: dict[Site, float]) -> list[Target]:
    """For each written site what its own member reads (a CLT's layer of that module), else the site."""
    out = []
    for group in groups:
        for site in group.writes:
            nearest = next((m for m in group.members if m.writes[0] == site), group.members[0])
            own = len(nearest.reads) == 1
            read = nearest.reads[0] if own else site
            out.append(Target(read, site, l0[site], nearest.n_latents))
    return out


@torch.no_grad()
def build_arms(
    network: Network, sequences: Sequences, wanted: Sequence[Target], seed: int, progress: Progress
) -> list[Arm]:
    """Ablations and rivals, fitted on sequences of the training split, one module at a time on clean activations."""
    neurons = {p.write: network.neurons(p) for p in network.parts()}
    sites = [s for t in wanted for s in (t.read, t.write)]
    sites += [n.site for t in wanted if t.read != t.write and (n := neurons.get(t.write))]
    acts: dict[Site, list[torch.Tensor]] = {s: [] for s in dict.fromkeys(sites)}
    whole: dict[Site, list[torch.Tensor]] = {t.write: [] for t in wanted}
    counted: dict[Site, list[torch.Tensor]] = {t.write: [] for t in wanted}
    picked = Order(len(sequences), seed).stream(0, len(sequences))
    needed = max(FIT_PLACES, 20 * max(network.width(s) for s in acts))
    with progress.task("fitting rivals", len(wanted) + 1, "sites") as task:
        for i in range(0, len(picked), 16):
            batch = sequences.batch(picked[i : i + 16]).to(network.device)
            for site, value in network.record(batch, acts).items():
                places = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
                if batch.mask is not None and batch.mask.shape == places.shape:
                    places = batch.mask
                acts[site].append(value[places].float())
                if site in whole:
                    whole[site].append(value.float())
                    counted[site].append(places)
            if sum(map(len, acts[sites[0]])) >= needed:
                break
        sample = {s: torch.cat(v) for s, v in acts.items()}
        made: dict[str, list[Dictionary]] = {}
        for j, t in enumerate(wanted):
            task.update(j, str(t.write))
            over_time = network.layout(t.write).calls == "time"  # a call does not know its position
            full = None if over_time else (torch.cat(whole[t.write]), torch.cat(counted[t.write]))
            for name, dictionary in _rivals(t, sample, full, neurons.get(t.write), seed).items():
                made.setdefault(name, []).append(dictionary)
        task.update(len(wanted) + 1)
    complete = {name: found for name, found in made.items() if len(found) == len(wanted)}
    return [
        Arm(name, [Group([d]) for d in found], name == "resample", found[0].is_oracle, NOTES.get(name, ""))
        for name, found in complete.items()
    ]


def _rivals(
    t: Target, sample: dict, full: tuple[torch.Tensor, torch.Tensor] | None, neurons, seed: int
) -> dict[str, Dictionary]:
    """sample: rows of the places that count; full: whole sequences at the written site, and which places count; None
    for no mean at each position."""
    k = max(1, round(t.l0))
    out: dict[str, Dictionary] = {
        "zero": Constant.zero(t.write, sample),
        "mean": Constant.mean(t.write, sample),
        "resample": Resample(t.write, sample[t.write].shape[-1]),
        "pca": PCA.fit(t.write, sample, k, Identity()),
        "random_dictionary": RandomDictionary.fit(t.read, t.write, t.n_latents, TopK(k), sample, seed),
    }
    if full is not None and full[0].dim() == 3 and len(full[0]):
        out["position_mean"] = PositionMean.fit(t.write, *full)
    if t.read == t.write:
        d = sample[t.write].shape[-1]
        out["top_channels_mean_filled"] = TopNeurons.channels(t.write, d, min(k, d), sample)
        return out
    out["linear_map"] = LinearMap.fit(t.read, t.write, sample, Identity())
    if neurons is not None:
        out["top_neurons"] = TopNeurons(neurons.site, t.write, neurons.W, neurons.bias, k)
        out["top_neurons_mean_filled"] = TopNeurons.mean_filled(
            neurons.site, t.write, neurons.W, neurons.bias, k, sample
        )
    return out


NOTES = {
    "zero": "writes 0",
    "mean": "writes the mean over training text",
    "position_mean": "writes the mean at each position",
    "resample": "writes what another sequence held at the same position",
    "pca": "the k directions of the true output that explain most variance, k = the understudy's L0",
    "random_dictionary": "random encoder directions, best decoder, the same L0",
    "linear_map": "best linear map from input to output; no latents",
    "top_neurons": "the module's k strongest hidden units, the rest at 0",
    "top_neurons_mean_filled": "the module's k strongest hidden units, the rest at their mean",
    "top_channels_mean_filled": "the k strongest coordinates, the rest at their mean",
}
