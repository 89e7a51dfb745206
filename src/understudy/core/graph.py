"""Graph: features as nodes, what each adds to each as edges, on one input. Sparse rows with remainder; nothing is lost.

A row belongs to a node that is computed (a latent or a target). For each such node t

    value[t] = sum over its edges of weight + remainder[t]

where weight = what source s adds to t's pre-activation, in the units of that pre-activation. Sources are inputs
(embeddings), biases, errors and latents. Nodes lie in the order of computation: an edge runs from a smaller index to a
larger one.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Integer
from pydantic import ValidationError
from torch import Tensor

from understudy.core import graph_folder
from understudy.core.records.errors import BadData, BadFolder, BadWeights, UnknownName
from understudy.core.records.graph import KINDS, GraphCard

INTEGERS = {"dictionary": torch.int16, "latent": torch.int32, "place": torch.int32, "site": torch.int16}
"""How the columns of `Nodes` that are indices are kept; the kind is uint8, all others are fp32."""


@dataclass(frozen=True)
class Nodes:
    """One column an attribute; all [n_nodes]."""

    kind: Integer[Tensor, " n"]
    """Index into `records.graph.KINDS` (uint8)."""
    dictionary: Integer[Tensor, " n"]
    """Of a latent: index into `card.dictionaries`, else -1 (int16)."""
    latent: Integer[Tensor, " n"]
    """Of a latent its id in the dictionary, of a target its index in `card.targets`, else -1 (int32)."""
    place: Integer[Tensor, " n"]
    """Flat place of the input, -1 for nodes that stand for all places (int32)."""
    site: Integer[Tensor, " n"]
    """Index into `card.sites`: where a latent reads, where an input, bias or error is written, else -1 (int16)."""
    value: Float[Tensor, " n"]
    """A latent's or target's pre-activation; of inputs, biases and errors the length of what they write."""
    threshold: Float[Tensor, " n"]
    """A latent is on above this, -inf where it has no threshold (a neuron); 0 for other nodes. A silent latent's value
    lies below its threshold."""

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Tensor) -> "Nodes":
        return Nodes(*(getattr(self, name)[index] for name in self.columns))

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    def where(self, kind: str) -> Bool[Tensor, " n"]:
        """Which nodes are of a kind. Raises UnknownName."""
        if kind not in KINDS:
            raise UnknownName.among("kind of node", kind, KINDS)
        return self.kind == KINDS.index(kind)

    @property
    def computed(self) -> Bool[Tensor, " n"]:
        """Nodes with a row of their own."""
        return self.where("latent") | self.where("target")


COLUMNS = tuple(field.name for field in fields(Nodes))


@dataclass(frozen=True)
class Rows:
    """Edges by target (CSR): row t holds sources[offsets[t]:offsets[t+1]]. Rows of nodes that are not computed are
    empty."""

    offsets: Integer[Tensor, " n_plus_1"]
    sources: Integer[Tensor, " e"]
    """int32"""
    weights: Float[Tensor, " e"]
    """fp32"""
    remainder: Float[Tensor, " n"]
    """Signed sum of what is not kept as an edge."""
    remainder_abs: Float[Tensor, " n"]
    """Sum of its absolute values: the mass by which shares are normalised."""

    @cached_property
    def targets(self) -> Integer[Tensor, " e"]:
        """The row of each edge."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.offsets.diff())

    def row(self, t: int) -> tuple[Tensor, Tensor]:
        """Sources and weights of one node."""
        part = slice(int(self.offsets[t]), int(self.offsets[t + 1]))
        return self.sources[part], self.weights[part]

    @cached_property
    def total(self) -> Float[Tensor, " n"]:
        """Sum of each row and its remainder, in fp64: the node's value."""
        sums = torch.zeros(len(self.remainder), dtype=torch.float64)
        return sums.index_add_(0, self.targets, self.weights.double()) + self.remainder.double()

    @cached_property
    def edge_mass(self) -> Float[Tensor, " n"]:
        """Sum of each row's absolute weights, in fp64."""
        sums = torch.zeros(len(self.remainder), dtype=torch.float64)
        return sums.index_add_(0, self.targets, self.weights.double().abs_())

    @cached_property
    def mass(self) -> Float[Tensor, " n"]:
        """Sum of each row's absolute weights and `remainder_abs`, in fp64."""
        return self.edge_mass + self.remainder_abs.double()

    def keep(self, edges: Bool[Tensor, " e"]) -> "Rows":
        """Only some edges; what goes is folded into the remainder."""
        gone = ~edges
        lost, targets = self.weights[gone].double(), self.targets[gone]
        n = len(self.remainder)
        counts = torch.bincount(self.targets[edges], minlength=n)
        return Rows(
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            sources=self.sources[edges],
            weights=self.weights[edges],
            remainder=self.remainder.double().index_add(0, targets, lost).float(),
            remainder_abs=self.remainder_abs.double().index_add(0, targets, lost.abs()).float(),
        )


@dataclass(frozen=True)
class Graph:
    """Nodes, rows and where they come from. Raises BadData where they do not fit each other."""

    nodes: Nodes
    rows: Rows
    card: GraphCard
    history: tuple[str, ...] = ()
    """What was done to it since it was made: `pruned to 100 nodes`, ..."""
    path: Path | None = None
    """Folder it was opened from. Its edges are read from there as they are used, and looked at only by `checked`."""

    def __post_init__(self) -> None:
        n = len(self.nodes)
        if len(self.rows.offsets) != n + 1 or len(self.rows.remainder) != n:
            raise BadData(f"a graph of {n} nodes has {len(self.rows.offsets) - 1} rows: its parts do not fit.")
        if len(self.rows.sources) != int(self.rows.offsets[-1]) or len(self.rows.weights) != len(self.rows.sources):
            raise BadData(f"the rows name {int(self.rows.offsets[-1])} edges but {len(self.rows.sources)} are there.")
        self._check_indices()
        if self.path is None:
            self._check_edges()

    def _check_indices(self) -> None:
        card, nodes = self.card, self.nodes
        within = {
            "kind": (nodes.kind, len(KINDS)),
            "dictionary of a latent": (nodes.dictionary[nodes.where("latent")], len(card.dictionaries)),
            "target": (nodes.latent[nodes.where("target")], len(card.targets)),
            "site": (nodes.site[nodes.site >= 0], len(card.sites)),
        }
        for what, (index, size) in within.items():
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
                raise BadData(f"a node names {what} {int(index.max())}, but the graph's card holds {size}.")
        if not bool((self.rows.offsets.diff() >= 0).all()) or int(self.rows.offsets[0]) != 0:
            raise BadData("the rows overlap: their offsets must start at 0 and never fall.")
        if bool((self.rows.offsets.diff() > 0)[~nodes.computed].any()):
            raise BadData("an input, bias or error has incoming edges; only latents and targets are computed.")

    def _check_edges(self) -> None:
        sources = self.rows.sources
        if not len(sources):
            return
        if int(sources.min()) < 0 or not bool((sources < self.rows.targets).all()):
            raise BadData("an edge runs backwards: nodes must lie in the order of computation.")
        numbers = {"weight": self.rows.weights, "remainder": self.rows.remainder, "value": self.nodes.value}
        for what, values in numbers.items():
            if not bool(torch.isfinite(values).all()):
                raise BadData(f"a {what} is NaN or infinite.")

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        return len(self.rows.sources)

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> Path:
        """Write an `.acg` folder in one move. Raises BadFolder if something is there already, DiskFull."""
        record = {
            "card": self.card.model_dump(mode="json"),
            "history": list(self.history),
            "nodes": len(self),
            "edges": self.n_edges,
        }
        columns = {c: getattr(self.nodes, c) for c in self.nodes.columns}
        nodes = {
            **columns,
            "kind": [KINDS[k] for k in self.nodes.kind.tolist()],
            "remainder": self.rows.remainder.float(),
            "remainder_abs": self.rows.remainder_abs.float(),
            "name": [name.encode("utf-8", "replace").decode() for name in self.names()],
        }
        rows = {
            "offsets": self.rows.offsets.long(),
            "sources": self.rows.sources.int(),
            "weights": self.rows.weights.float(),
        }
        graph_folder.write(Path(path), record, nodes, rows)
        return Path(path)

    @classmethod
    def open(cls, path: Path | str) -> "Graph":
        """A graph from its folder; edges stay in their file until they are used. See `checked`.

        Raises BadFolder for a folder that is not a graph, was cut short or put together from several; BadWeights for a
        damaged file. Both name it.
        """
        path = Path(path)
        record, columns, tensors = graph_folder.read(path)
        try:
            card = GraphCard.model_validate(record["card"])
            history = tuple(map(str, record["history"]))
        except (ValidationError, KeyError, TypeError) as error:
            said = str(error).splitlines()[0]
            raise BadFolder(f"{path / graph_folder.CARD} is not the card of a graph: {said}.") from None
        try:
            kinds = torch.tensor([KINDS.index(k) for k in columns["kind"]], dtype=torch.uint8)
            numbers = {c: _number(columns, c) for c in (*COLUMNS[1:], "remainder", "remainder_abs")}
        except (KeyError, ValueError, TypeError) as error:
            raise BadWeights(f"{path / graph_folder.NODES} does not hold the nodes of a graph: {error}.") from None
        tail = {c: numbers.pop(c) for c in ("remainder", "remainder_abs")}
        try:
            return cls(Nodes(kind=kinds, **numbers), Rows(**tensors, **tail), card, history, path)
        except BadData as error:
            raise BadWeights(f"{path} was edited: {error}") from None

    def checked(self) -> "Graph":
        """Itself, once every edge of its file was read and found sound. Raises BadWeights."""
        try:
            self._check_edges()
        except BadData as error:
            raise BadWeights(f"{self.path or 'the graph'} was edited: {error}") from None
        return self

    # -- parts --------------------------------------------------------------------------------------------------------

    def kept_latents(self) -> dict[int, Integer[Tensor, " m"]]:
        """For each dictionary (its index in `card.dictionaries`) the latents that are on here, sorted, each once."""
        latents = self.nodes.where("latent") & (self.nodes.value > self.nodes.threshold)
        owner, ids = self.nodes.dictionary[latents], self.nodes.latent[latents]
        return {i: ids[owner == i].long().unique() for i in range(len(self.card.dictionaries))}

    def keep(self, nodes: Bool[Tensor, " n"], edges: Bool[Tensor, " e"] | None = None, why: str = "") -> "Graph":
        """Only some nodes, and of the edges between them only some; targets stay.

        What goes is folded into the remainders: the total of every row that stays is as it was.
        """
        nodes = nodes | self.nodes.where("target")
        between = nodes[self.rows.sources.long()] & nodes[self.rows.targets]
        rows = self.rows.keep(between if edges is None else between & edges)
        number = torch.cumsum(nodes.long(), 0) - 1
        kept = nodes.nonzero().squeeze(-1)
        counts = rows.offsets.diff()[kept]
        return replace(
            self,
            nodes=self.nodes[kept],
            rows=Rows(
                offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
                sources=number[rows.sources.long()].to(rows.sources.dtype),
                weights=rows.weights,
                remainder=rows.remainder[kept],
                remainder_abs=rows.remainder_abs[kept],
            ),
            history=(*self.history, why or f"kept {len(kept)} of {len(nodes)} nodes"),
            path=None,
        )

    # -- for people ---------------------------------------------------------------------------------------------------

    def name(self, node: int) -> str:
        """A node for people: `mlp.3/174@12`, `error mlp.3@12`, `' def'@4`, a target's own name."""
        columns = (self.nodes.kind, self.nodes.dictionary, self.nodes.latent, self.nodes.place, self.nodes.site)
        return self._name(*(int(c[node]) for c in columns))

    def names(self) -> list[str]:
        """The name of every node, in order."""
        columns = (self.nodes.kind, self.nodes.dictionary, self.nodes.latent, self.nodes.place, self.nodes.site)
        return [self._name(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def _name(self, kind: int, dictionary: int, latent: int, place: int, site: int) -> str:
        card, at = self.card, f"@{place}" if place >= 0 else ""
        match KINDS[kind]:
            case "target":
                return card.targets[latent].name
            case "latent":
                owner = card.dictionaries[dictionary]
                return f"{owner.name or owner.writes[0]}/{latent}{at}"
            case "input" if 0 <= place < len(card.tokens):
                return f"{card.tokens[place]!r}{at}"
            case other:
                return f"{other} {(card.site_names or card.sites)[site]}{at}" if site >= 0 else f"{other}{at}"

    def __repr__(self) -> str:
        counts = ", ".join(f"{int(self.nodes.where(k).sum())} {k}" for k in KINDS)
        return f"Graph({len(self)} nodes: {counts}; {self.n_edges} edges; {self.card.network})"


def _number(columns: dict[str, Tensor | list[str]], name: str) -> Tensor:
    """A column in the type that the code keeps it in. Raises KeyError, TypeError, ValueError."""
    if name not in columns:
        raise KeyError(f"there is no column {name}")
    column, dtype = columns[name], INTEGERS.get(name, torch.float32)
    if not isinstance(column, Tensor) or column.dtype.is_floating_point != dtype.is_floating_point:
        raise TypeError(f"column {name} is not made of {'numbers' if dtype.is_floating_point else 'whole numbers'}")
    kept = column.to(dtype)
    if not dtype.is_floating_point and not bool((kept == column).all()):
        raise ValueError(f"column {name} holds numbers that are too large")
    return kept
