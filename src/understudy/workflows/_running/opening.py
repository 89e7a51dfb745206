"""What `run` was given: a run whose latents are ranked over a data set, or the graph of one input."""

from dataclasses import dataclass
from pathlib import Path

import torch

from understudy.baselines import NeuronBasis
from understudy.core.dictionary import Dictionary, Group
from understudy.core.graph import Graph
from understudy.core.graph_folder import CARD
from understudy.core.names import find_parts
from understudy.core.network import Network
from understudy.core.records.errors import BadFolder, BadInput
from understudy.edits.graph_groups import check_network, owners
from understudy.workflows._data import n_skipped
from understudy.workflows._opening import open_network
from understudy.workflows.evaluate import SavedRun, address, open_run


@dataclass(frozen=True)
class Opened:
    """A network, the groups that run in its place, and the graph if there is one."""

    network: Network
    groups: list[Group]
    saved: SavedRun | None
    """None for a graph over the network's own neurons."""
    graph: Graph | None
    folder: Path

    @property
    def name(self) -> str:
        """What the network was opened by."""
        return self.saved.config.network if self.saved is not None else self.network.name

    @property
    def data(self) -> str:
        return self.saved.config.data if self.saved is not None else "stdlib"

    @property
    def context(self) -> int | None:
        return self.saved.config.context if self.saved is not None else None

    @property
    def skip_first(self) -> int:
        """Places at the start of each sequence that keep the network's own activations."""
        return self.saved.skip_first if self.saved is not None else n_skipped(self.network, None)


def open_source(source: Path, network: Network | str | None) -> Opened:
    """A run or a graph from its folder; of a graph also what it was made with, checked by fingerprint.

    Raises BadFolder, BadWeights, BadInput (other dictionaries, another network: which).
    """
    folder, _ = address(source)
    if not (folder / CARD).exists():
        if folder.suffix == ".acg":
            raise BadFolder(f"there is no graph at {folder}: `understudy attribute RUN --out {folder}` makes one.")
        saved = open_run(source, network)
        _check_rules(saved.groups)
        return Opened(saved.network, saved.groups, saved, None, saved.folder.path)
    graph = Graph.open(folder).checked()
    card = graph.card
    if card.run is not None:
        saved = open_run(card.run, network)
        opened, groups = saved.network, saved.groups
    else:
        saved, opened = None, network if isinstance(network, Network) else open_network(network or card.network)
        groups = _neurons(opened, [d.writes[0] for d in card.dictionaries])
    check_network(graph, opened)
    owners(graph, groups)
    _check_rules(groups)
    return Opened(opened, groups, saved, graph, folder)


def _neurons(network: Network, writes: list[str]) -> list[Group]:
    groups = []
    for part in (p for p in find_parts(network, "*") if str(p.write) in writes):
        own = network.neurons(part)
        if own is not None:
            groups.append(Group([NeuronBasis(own.site, part.write, own.W, own.bias)]))
    return groups


def _check_rules(groups: list[Group]) -> None:
    for member in (m for g in groups for m in g.members):
        rule = getattr(member, "sparsity", None)
        if rule is not None and not rule.is_thresholded:
            raise BadInput(
                f"{member} lets its latents compete, so a part of them means nothing. Runs end with thresholds: finish "
                "this one (understudy train --resume), or convert with dictionary.thresholded(acts)."
            )


def node_scores(graph: Graph, groups: list[Group], scores: torch.Tensor) -> dict[Dictionary, torch.Tensor]:
    """Scores of nodes as scores of latents: the sum over the places where each is a node; latents that are none, -1."""
    out = {}
    nodes = graph.nodes
    for i, dictionary in owners(graph, groups).items():
        mine = nodes.where("latent") & (nodes.dictionary == i)
        found = torch.zeros(dictionary.n_latents, dtype=torch.float64)
        found.index_add_(0, nodes.latent[mine].long(), scores[mine].double())
        is_node = torch.zeros(dictionary.n_latents, dtype=torch.bool)
        is_node[nodes.latent[mine].long()] = True
        out[dictionary] = torch.where(is_node, found, -1.0)
    return out
