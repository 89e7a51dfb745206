"""Graphs built by hand over real groups: nodes without edges are enough to run one."""

import torch

from understudy.core.dictionary import Group
from understudy.core.fingerprint import dictionary_fingerprint, network_fingerprint
from understudy.core.graph import Graph, Nodes, Rows
from understudy.core.network import Network
from understudy.core.records.graph import KINDS, DictionaryCard, GraphCard, TargetCard


def graph_of(network: Network, groups: list[Group], nodes: list[tuple[int, int, int]], tokens: list[int]) -> Graph:
    """nodes: (dictionary, latent, place), place -1 for all. The last node is the one target."""
    members = [m for g in groups for m in g.members]
    cards = [
        DictionaryCard(
            kind=m.kind, reads=[str(s) for s in m.reads], writes=[str(s) for s in m.writes],
            n_latents=m.n_latents, fingerprint=dictionary_fingerprint(m),
        )
        for m in members
    ]  # fmt: skip
    name = next(iter(network.example().inputs))
    card = GraphCard(
        network=network.name, network_fingerprint=network_fingerprint(network), run=None, dictionaries=cards,
        sites=[str(m.reads[0]) for m in members], inputs={name: tokens}, shape=(len(tokens),),
        targets=[TargetCard(name="loss", weight=1.0)],
    )  # fmt: skip
    n = len(nodes) + 1
    columns = torch.tensor([*nodes, (-1, 0, -1)])
    kind = torch.full((n,), KINDS.index("latent"), dtype=torch.uint8)
    kind[-1] = KINDS.index("target")
    made = Nodes(
        kind=kind, dictionary=columns[:, 0].short(), latent=columns[:, 1].int(), place=columns[:, 2].int(),
        site=columns[:, 0].short(), value=torch.ones(n), threshold=torch.zeros(n),
    )  # fmt: skip
    empty = torch.zeros(n)
    rows = Rows(torch.zeros(n + 1, dtype=torch.long), torch.zeros(0, dtype=torch.int32), torch.zeros(0), empty, empty)
    return Graph(made, rows, card)


def all_nodes(groups: list[Group]) -> list[tuple[int, int, int]]:
    members = [m for g in groups for m in g.members]
    return [(i, latent, -1) for i, m in enumerate(members) for latent in range(m.n_latents)]
