"""Expression: a graph evaluated by its own numbers. No block of the network runs: latents come from latents alone.

For each node t that is computed, in the order of computation,

    value[t] = sum over edges s -> t of weight x share[s] + remainder[t]

share[s] = what s passes on, over what it passed on when the graph was made: of a latent value / clean value where its
value lies above its threshold, else 0; of inputs and biases 1. Alone, errors pass on nothing and remainders are left
out; measured, both stay as they were on the clean pass, so that everything kept gives every value back.

What the graph froze (attention patterns, norm scales, gates) stays frozen. A latent that was off when the graph was
made has no outgoing edges: if it wakes, it passes on nothing. Source: Ameisen et al. 2025, Circuit Tracing, local
replacement model; theirs runs the network's frozen attention, this runs the kept edges alone.
"""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.core.graph import Graph
from understudy.core.records.errors import WrongShape


class Expression:
    """A graph as a function of what its latents pass on. Raises BadWeights for edges that run backwards."""

    def __init__(self, graph: Graph, thresholds: bool = True) -> None:
        """thresholds: False for the linear control, in which a latent passes on what it has, whatever its sign."""
        self.graph = graph.checked()
        nodes = self.graph.nodes
        self.clean = nodes.value.double()
        gated = nodes.where("latent") & ~self._signed
        self.threshold = torch.where(gated, nodes.threshold.double(), -torch.inf)
        if not thresholds:
            self.threshold = torch.full_like(self.threshold, -torch.inf)
        self._leaf = ~nodes.computed
        self._on = nodes.where("latent") & (self._signed | (self.clean > nodes.threshold.double())) & (self.clean != 0)

    @cached_property
    def _signed(self) -> Bool[Tensor, " n"]:
        """Latents of dictionaries without thresholds (neurons that may be below 0): seen by edges that leave one whose
        value is not above its threshold."""
        nodes, rows = self.graph.nodes, self.graph.rows
        passes = torch.zeros(len(nodes), dtype=torch.bool)
        passes[rows.sources[rows.weights != 0].long()] = True
        silent = nodes.where("latent") & (nodes.value <= nodes.threshold) & passes
        return nodes.where("latent") & torch.isin(nodes.dictionary, nodes.dictionary[silent].unique())

    @cached_property
    def _levels(self) -> list[tuple[Int[Tensor, " m"], Int[Tensor, " e"]]]:
        """Computed nodes that can be evaluated together, sources before what they make; with their edges."""
        rows, n = self.graph.rows, len(self.graph)
        level = torch.zeros(n, dtype=torch.long)
        starts = rows.offsets.tolist()
        sources = rows.sources.long()
        for t in self.graph.nodes.computed.nonzero().squeeze(-1).tolist():
            mine = sources[starts[t] : starts[t + 1]]
            level[t] = 1 + (int(level[mine].max()) if len(mine) else 0)
        edge_level = level[rows.targets]
        return [
            ((level == i).nonzero().squeeze(-1), (edge_level == i).nonzero().squeeze(-1))
            for i in range(1, int(level.max()) + 1)
        ]

    def values(self, shares: Float[Tensor, "b n"] | None = None, measured: bool = False) -> Float[Tensor, "b n"]:
        """Every node's value under b edits, fp64; of inputs, biases and errors as they were.

        shares: what a node passes on, over what it passed on in the clean pass, where an edit sets it (0: removed); NaN
        where none does, and all NaN for None. Raises WrongShape.
        """
        n = len(self.graph)
        shares = torch.full((1, n), torch.nan) if shares is None else shares
        if shares.dim() != 2 or shares.shape[1] != n:
            raise WrongShape(f"shares are [edits, {n} nodes] of this graph, not {tuple(shares.shape)}.")
        rows, set_by_edit = self.graph.rows, ~shares.isnan()
        value = self.clean.expand(len(shares), n).clone()
        passed = torch.zeros_like(value)
        passed[:, self._leaf] = 1.0
        if not measured:
            passed[:, self.graph.nodes.where("error")] = 0.0
        passed = torch.where(set_by_edit, shares.double(), passed)
        weights, sources = rows.weights.double(), rows.sources.long()
        rest = rows.remainder.double() if measured else torch.zeros(n, dtype=torch.float64)
        for targets, edges in self._levels:
            flow = passed[:, sources[edges]] * weights[edges]
            value[:, targets] = rest[targets]
            value.index_add_(1, rows.targets[edges], flow)
            new = torch.where(value[:, targets] > self.threshold[targets], value[:, targets], 0.0)
            share = torch.where(self._on[targets], new / self.clean[targets], 0.0)
            passed[:, targets] = torch.where(set_by_edit[:, targets], passed[:, targets], share)
        return value

    def without(self, nodes: Int[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Shares of b edits, each the removal of one node."""
        shares = torch.full((len(nodes), len(self.graph)), torch.nan)
        shares[torch.arange(len(nodes)), nodes] = 0.0
        return shares
