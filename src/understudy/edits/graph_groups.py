"""A graph as groups: the network's dictionaries restricted to the latents that are nodes, ready to run in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.fingerprint import dictionary_fingerprint, network_fingerprint
from understudy.core.graph import Graph
from understudy.core.network import Network
from understudy.core.records.errors import BadInput
from understudy.core.replacement import STANDALONE, Policy, Replacement, Run
from understudy.edits.restriction import AtPlaces, restricted

At = Literal["features", "occurrences"]
"""Where a node may fire: at every place (any input), or only where the graph has it (the graph's own input)."""


def graph_groups(graph: Graph, groups: Sequence[Group], at: At = "features") -> list[Group]:
    """The groups with every dictionary restricted to the graph's latents.

    `features`: the union over places, so that the graph runs on any input. `occurrences`: each latent only at the
    places where it is a node; for the graph's own input. Input and bias nodes are the network's own and always there;
    error nodes are added by the policy (`MEASURED_ERRORS`), never silently.
    Raises BadInput if a dictionary is not the one the graph was made with, and says which; UnderstudyError for
    dictionaries whose latents compete.
    """
    owner = owners(graph, groups)
    ids = graph.kept_latents()
    parts = restricted(groups, {d: ids[i] for i, d in owner.items()})
    if at == "features":
        return parts
    number = {id(d): i for i, d in owner.items()}
    return [
        Group([_at_places(graph, number[id(m)], part) for m, part in zip(g.members, p.members, strict=True)], p.biases)
        for g, p in zip(groups, parts, strict=True)
    ]


def _at_places(graph: Graph, number: int, part: Dictionary) -> AtPlaces:
    nodes = graph.nodes
    mine = nodes.where("latent") & (nodes.dictionary == number)
    place, latent = nodes.place[mine].long(), nodes.latent[mine].long()
    allowed = torch.zeros(prod(graph.card.shape), part.n_latents, dtype=torch.bool)
    everywhere = place < 0
    allowed[place[~everywhere], latent[~everywhere]] = True
    allowed[:, latent[everywhere]] = True
    return AtPlaces(part, allowed)


def owners(graph: Graph, groups: Sequence[Group]) -> dict[int, Dictionary]:
    """The dictionary of each entry of `card.dictionaries`, checked by fingerprint. Raises BadInput."""
    members = [m for g in groups for m in g.members]
    found: dict[int, Dictionary] = {}
    for i, card in enumerate(graph.card.dictionaries):
        sites = [m for m in members if _sites(m) == (card.reads, card.writes)]
        if not sites:
            raise BadInput(
                f"the graph has a dictionary that reads {', '.join(card.reads)} and writes {', '.join(card.writes)}; "
                f"none of these groups' {len(members)} does. Pass the groups it was made with"
                + (f": the run {graph.card.run}, as it was then." if graph.card.run else ".")
            )
        prints = {dictionary_fingerprint(m): m for m in sites}
        if card.fingerprint not in prints:
            raise BadInput(
                f"the dictionary that writes {', '.join(card.writes)} is another than the graph's: fingerprint "
                f"{', '.join(prints)}, the graph's is {card.fingerprint}. Pass the groups it was made with"
                + (f": the run {graph.card.run}, as it was then." if graph.card.run else ".")
            )
        found[i] = prints[card.fingerprint]
    unknown = [m for m in members if not any(m is d for d in found.values())]
    if unknown:
        raise BadInput(f"the graph knows nothing of {unknown[0]}: pass only the groups it was made with.")
    return found


def check_network(graph: Graph, network: Network) -> None:
    """Raises BadInput if the graph was made on other weights than the network has."""
    found = network_fingerprint(network)
    if found != graph.card.network_fingerprint:
        raise BadInput(
            f"the graph was made on {graph.card.network} with the fingerprint {graph.card.network_fingerprint}, but "
            f"{network.name} has {found}: other weights. Open the network it was made on."
        )


def _sites(dictionary: Dictionary) -> tuple[list[str], list[str]]:
    return [str(s) for s in dictionary.reads], [str(s) for s in dictionary.writes]


@dataclass(frozen=True)
class RunnableGraph:
    """A graph in the network's place."""

    graph: Graph
    replacement: Replacement

    @classmethod
    def of(
        cls, graph: Graph, network: Network, groups: Sequence[Group], at: At = "features", skip_first: int = 0
    ) -> "RunnableGraph":
        """skip_first: as for `Replacement`. Raises BadInput for a network or dictionaries that the graph was not made
        with."""
        check_network(graph, network)
        return cls(graph, Replacement(network, graph_groups(graph, groups, at), skip_first))

    def run(self, batch: Batch, policy: Policy = STANDALONE) -> Run:
        """One forward pass with the graph in place; a policy that needs a clean pass makes one itself."""
        recording = self.replacement.record(batch) if policy.needs_recording else None
        return self.replacement.run(batch, policy, recording)


def own_input(graph: Graph) -> Batch:
    """The one input a graph was made on, as a batch. Raises BadInput where the graph does not hold it."""
    inputs: dict[str, Tensor] = {name: torch.tensor([ids]) for name, ids in graph.card.inputs.items()}
    if not inputs:
        raise BadInput("the graph does not hold its input (it has no token ids): say what to run it on, --data.")
    shaped = {name: value.reshape(1, *graph.card.shape) for name, value in inputs.items()}
    return Batch(shaped)
