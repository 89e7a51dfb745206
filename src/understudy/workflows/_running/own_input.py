"""A graph on the one input it was made on, each latent only where it is a node: figures without intervals."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.graph import Graph
from understudy.core.network import Network
from understudy.core.records.graph_curve import ACTIVATION, GRAPH, RANDOM, Size
from understudy.core.records.metric import Metric, NotMeasured, exact
from understudy.core.replacement import Replacement
from understudy.edits import graph_groups, restricted
from understudy.edits.restriction import AtPlaces
from understudy.pruning import activation, influence, random_order

NO_LOSS = NotMeasured(not_measured="on its own input a graph is judged where its targets are, by divergence")


def target_places(graph: Graph) -> list[int]:
    """The places whose output the graph explains; the last one where targets name none."""
    places = graph.nodes.place[graph.nodes.where("target")].unique().tolist()
    return sorted(p for p in places if p >= 0) or [graph.card.shape[0] - 1]


def node_rankings(graph: Graph, seed: int) -> dict[str, Tensor]:
    """For each selection all latent nodes, best first."""
    latents = graph.nodes.where("latent").nonzero().squeeze(-1)
    scores = {GRAPH: influence(graph), RANDOM: random_order(graph, seed), ACTIVATION: activation(graph)}
    return {name: latents[s[latents].argsort(descending=True, stable=True)] for name, s in scores.items()}


def pruned(graph: Graph, groups: Sequence[Group], nodes: Tensor) -> list[Group]:
    """Groups of some latent nodes, at their places."""
    kept = torch.zeros(len(graph), dtype=torch.bool)
    kept[nodes] = True
    return graph_groups(graph.keep(kept), groups, "occurrences")


def neuron_occurrences(replacement: Replacement, batch: Batch) -> list[tuple[Dictionary, Tensor]]:
    """For each dictionary the length of what every latent writes at every place of one input, [n_places, n_latents]."""
    out = []
    for (member, _), z in replacement.record(batch).latents.items():
        atoms = member.atoms(torch.arange(member.n_latents, device=z.ids.device)).values()
        length = sum(a.double().square().sum(-1) for a in atoms).sqrt()  # pyright: ignore[reportAttributeAccessIssue]
        out.append((member, z.dense()[0].abs().double() * length))
    return out


def neurons_at_places(groups: Sequence[Group], found: list[tuple[Dictionary, Tensor]], n: int) -> list[Group]:
    """The n occurrences that write most, over all dictionaries."""
    cut = torch.cat([mass.flatten() for _, mass in found]).topk(n).values[-1]
    out = []
    for group, (member, mass) in zip(groups, found, strict=True):
        allowed = mass >= cut
        ids = {member: allowed.any(0).nonzero().squeeze(-1)}
        out.append(Group([AtPlaces(restricted([group], ids)[0].members[0], allowed)], group.biases))
    return out


class OwnInput:
    """Runs groups on one input and compares what comes out at the places of the targets."""

    def __init__(self, network: Network, batch: Batch, places: Sequence[int], skip_first: int = 0) -> None:
        self.network, self.batch, self.places, self.skip_first = network, batch, list(places), skip_first
        self.clean = network.forward(batch)
        self.own = network.choice(self.clean)

    def size(self, groups: Sequence[Group], selection: str, nodes: int) -> Size:
        """One graph's figures; `kept` comes later, from all of them."""
        run = Replacement(self.network, groups, self.skip_first).run(self.batch)
        kl = self.network.divergence(self.clean, run.output, self.batch)[0, self.places].double().mean()
        choice, n = self.network.choice(run.output), len(self.places)
        if isinstance(choice, Tensor) and isinstance(self.own, Tensor):
            agree = (choice == self.own)[0, self.places].double().mean()
            top1: Metric = exact(float(agree), "fraction", n)
        else:
            top1 = NotMeasured(not_measured=f"{self.network.name} makes no discrete choice")
        on = [float(z.l0().double().mean()) for calls in run.latents.values() for z in calls]
        return Size(
            selection=selection, nodes=nodes, l0=exact(sum(on) / max(1, len(on)), "latents", n),
            loss=NO_LOSS, delta_loss=NO_LOSS, kl=exact(float(kl), self.network.divergence_unit, n), top1_agreement=top1,
            kept=NO_LOSS, kept_beyond_linear=NO_LOSS, against_graph=NO_LOSS,
        )  # fmt: skip

    def with_kept(self, size: Size, nothing: Size, everything: Size) -> Size:
        """The same with its share of the score."""
        kl, worst, best = (s.kl.value for s in (size, nothing, everything))  # pyright: ignore
        too_close = NotMeasured(not_measured="nothing to keep: all latents do no better than none")
        kept = exact((worst - kl) / (worst - best), "fraction", len(self.places)) if worst > best else too_close
        return size.model_copy(update={"kept": kept})
