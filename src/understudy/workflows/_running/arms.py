"""Graphs of every size and their rivals, as arms of one comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from understudy.baselines import Constant, LinearMap, NeuronBasis
from understudy.core.dictionary import Acts, Dictionary, Group
from understudy.core.network import Network
from understudy.core.records.graph_curve import NEURONS
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.edits import fill_mean, low_rank, refit, restricted
from understudy.edits.restriction import Dropped
from understudy.sparsity import Identity
from understudy.workflows._judging.arms import Arm
from understudy.workflows._running.ranking import Ranking

MEAN, LINEAR, NOTHING = "mean ablation", "linear map", "nothing"


@dataclass(frozen=True)
class Treatment:
    """What becomes of latents that are not kept, and the training data it is fitted on."""

    dropped: Dropped
    rank: int
    sample: Acts

    def __call__(self, groups: Sequence[Group], kept: dict[Dictionary, Tensor]) -> list[Group]:
        """Groups that run."""
        if self.dropped == "mean":
            return fill_mean(groups, kept, self.sample)
        parts = restricted(groups, kept)
        if self.dropped == "refit":
            return refit(parts, self.sample)
        if self.dropped == "low_rank":
            return low_rank(parts, self.sample, self.rank, Identity())
        return parts


def arm_name(selection: str, nodes: int) -> str:
    return f"{selection} {nodes}"


def size_arms(
    rankings: dict[str, Ranking], sizes: Sequence[int], treat: Treatment, progress: Progress
) -> dict[tuple[str, int], Arm]:
    """An arm for each selection and size that it has enough latents for."""
    wanted = [(name, n) for name, ranking in rankings.items() for n in sizes if n < len(ranking)]
    out = {}
    with progress.task("building graphs", len(wanted), "graphs") as task:
        for i, (name, n) in enumerate(wanted):
            task.update(i, arm_name(name, n))
            ranking = rankings[name]
            out[name, n] = Arm(arm_name(name, n), treat(ranking.groups, ranking.first(n)))
        task.update(len(wanted))
    return out


def reference_arms(groups: Sequence[Group], treat: Treatment, sample: Acts) -> list[Arm]:
    """Nothing kept; the mean ablation; and, where modules are replaced, the best linear map in place of each."""
    arms = [Arm(NOTHING, treat(groups, {}))]
    arms.append(Arm(MEAN, [Group([Constant.mean(s, sample)]) for g in groups for s in g.writes]))
    nearest = {s: _reads(g, s) for g in groups for s in g.writes}
    if all(len(reads) == 1 and s not in reads for s, reads in nearest.items()):
        maps = [LinearMap.fit(reads[0], s, sample, Identity()) for s, reads in nearest.items()]
        arms.append(Arm(LINEAR, [Group([m]) for m in maps]))
    return arms


def _reads(group: Group, site: Site) -> tuple[Site, ...]:
    """What the member that writes `site` first reads: the input of the module that makes it."""
    return next((m for m in group.members if m.writes[0] == site), group.members[0]).reads


def neuron_groups(network: Network, groups: Sequence[Group]) -> list[Group] | str:
    """All neurons of every replaced part, or why there are none."""
    parts = {p.write: p for p in network.parts()}
    found: list[Group] = []
    for site in dict.fromkeys(s for g in groups for s in g.writes):
        own = network.neurons(parts[site]) if site in parts else None
        if own is None:
            return f"{NEURONS}: {site} is not what a module with hidden units of its own writes"
        found.append(Group([NeuronBasis(own.site, site, own.W, own.bias)]))
    return found
