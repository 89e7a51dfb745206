"""Graphs whose dense adjacency is known, for tests of everything that takes a graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.core.graph import Graph, Nodes, Rows
from understudy.core.records.graph import KINDS, Certificate, DictionaryCard, GraphCard, TargetCard

HOSTILE = "</script><script>alert(1)</script>"


def card(layers: int, tokens: Sequence[str], weights: Sequence[float], names: Sequence[str] = ()) -> GraphCard:
    """A card for `layers` transcoders over `tokens`, with targets of the given weights."""
    names = names or [f"' out{i}' (p={w:.2f})" for i, w in enumerate(weights)]
    return GraphCard(
        network="toy",
        network_fingerprint="f" * 16,
        run=None,
        dictionaries=[
            DictionaryCard(
                kind="transcoder",
                reads=[f"model.layers.{i}.mlp:in"],
                writes=[f"model.layers.{i}.mlp:out"],
                n_latents=1000,
                fingerprint=f"{i}" * 16,
            )
            for i in range(layers)
        ],
        sites=["model.embed:out", *(f"model.layers.{i}.mlp:out" for i in range(layers))],
        inputs={"input_ids": list(range(10, 10 + len(tokens)))},
        tokens=list(tokens),
        shape=(len(tokens),),
        targets=[
            TargetCard(name=n, weight=w, output=50 + i, probability=w) for i, (n, w) in enumerate(zip(names, weights))
        ],
        certificate=Certificate(
            exact=True, row_sum_error=1e-6, clamp_error=1e-6, second_derivative=0.0, tolerance=1e-4, frozen=[]
        ),
    )


def layered(
    seed: int = 0,
    layers: int = 3,
    tokens: Sequence[str] = (" a", " b", " c"),
    per_cell: int = 4,
    weights: Sequence[float] = (0.6, 0.4),
    biases: bool = False,
    errors: bool = True,
    density: float = 0.7,
) -> tuple[Graph, Tensor]:
    """A causal network of transcoders at random, and its adjacency [target, source] in fp64. No remainder."""
    kind, dictionary, latent, place, site = [], [], [], [], []

    def add(what: str, owner: int, number: int, at: int, where: int) -> None:
        for column, value in zip(
            (kind, dictionary, latent, place, site), (KINDS.index(what), owner, number, at, where)
        ):
            column.append(value)

    for p in range(len(tokens)):
        add("input", -1, -1, p, 0)
    for layer in range(layers):
        if biases:
            add("bias", -1, -1, -1, layer + 1)
        for p in range(len(tokens)):
            for i in range(per_cell):
                add("latent", layer, 7 * i + p, p, layer + 1)
        for p in range(len(tokens) if errors else 0):
            add("error", -1, -1, p, layer + 1)
    for i in range(len(weights)):
        add("target", -1, i, len(tokens) - 1, -1)
    generator = torch.Generator().manual_seed(seed)
    n = len(kind)
    a = torch.randn(n, n, dtype=torch.float64, generator=generator)
    a *= torch.rand(n, n, generator=generator) < density
    # An edge runs to a later layer and never backwards in the text.
    depth = torch.tensor(site)
    depth[torch.tensor(kind) == KINDS.index("target")] = layers + 1
    at = torch.tensor(place)
    computed = (torch.tensor(kind) == KINDS.index("latent")) | (torch.tensor(kind) == KINDS.index("target"))
    a *= (depth[:, None] > depth[None]) & (at[:, None] >= at[None]) & computed[:, None]
    columns = {"kind": kind, "dictionary": dictionary, "latent": latent, "place": place, "site": site}
    return graph_of(a, columns, card(layers, tokens, weights)), a.float().double()


def graph_of(a: Tensor, columns: dict[str, list[int]], card: GraphCard, remainder: Tensor | None = None) -> Graph:
    """A graph with the nonzero entries of `a` as edges."""
    dtypes = {
        "kind": torch.uint8,
        "dictionary": torch.int16,
        "latent": torch.int32,
        "place": torch.int32,
        "site": torch.int16,
    }
    rest = torch.zeros(len(a)) if remainder is None else remainder.float()
    at = a.nonzero()
    value = (a.sum(1) + rest).float()
    value = torch.where(torch.tensor(columns["kind"]) < 3, 1.0, value)
    nodes = Nodes(**{k: torch.tensor(v, dtype=dtypes[k]) for k, v in columns.items()},
                  value=value, threshold=torch.zeros(len(a)) - 100)  # fmt: skip
    counts = torch.bincount(at[:, 0], minlength=len(a))
    rows = Rows(
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        sources=at[:, 1].int(),
        weights=a[at[:, 0], at[:, 1]].float(),
        remainder=rest,
        remainder_abs=rest.abs(),
    )
    return Graph(nodes, rows, card)


def dense(graph: Graph) -> Tensor:
    """Adjacency [target, source] of a graph, in fp64."""
    a = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    a[graph.rows.targets, graph.rows.sources.long()] = graph.rows.weights.double()
    return a
