"""A graph as a page shows it: its most influential nodes with their strongest edges, as plain data."""

from understudy.core.records.graph import GraphCard, GraphScores, NodeKind
from understudy.core.records.metric import Record


class ViewEdge(Record):
    """One edge between nodes that are shown."""

    source: int
    """Number of the node it comes from."""
    target: int
    weight: float
    """What the source adds to the target's pre-activation."""
    share: float
    """|weight| as a share of all that flows into the target, remainder included."""
    flow: float
    """What flows through it, as a share of the targets' influence."""


class ViewNode(Record):
    """One node; its number is its index in the view."""

    name: str
    kind: NodeKind
    level: int
    """Row: 0 for inputs, then one for each dictionary in the order of computation, then the targets."""
    place: int
    influence: float
    """What flows through it in the whole graph, as a share of the targets' influence."""
    rank: float
    """Cumulative share of influence of it and of all that have more, among what can be shown."""
    value: float
    threshold: float
    bias: float
    """Signed sum of the edges from biases."""
    remainder: float
    """Signed sum of what is not shown as an edge."""
    remainder_share: float
    """Its absolute mass as a share of all that flows in."""
    incoming: list[int]
    """Its strongest edges, by number."""
    outgoing: list[int]


class GraphView(Record):
    """A page's worth of a graph."""

    title: str
    card: GraphCard
    history: tuple[str, ...]
    whole: GraphScores
    shown: GraphScores
    levels: list[str]
    """Name of each row."""
    nodes: list[ViewNode]
    edges: list[ViewEdge]
    """The strongest first, by what flows through them."""
    drawn: int
    """So many of them are drawn; the others only with a node that they are among the strongest of."""
