"""Every node in words: what it is, what adds up to it, what it adds to."""

from math import inf

from understudy.core.records.graph_view import GraphView, ViewEdge, ViewNode
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import percent, plain

KINDS = {"input": "input", "bias": "bias", "error": "error", "latent": "latent", "target": "target"}


def signed(value: float) -> str:
    return f"+{plain(value)}" if value > 0 else plain(value)


def article(view: GraphView, i: int) -> Markup:
    """One node. Its id is what the picture links to."""
    node = view.nodes[i]
    lists = [
        _edges("Strongest in", view, [view.edges[e] for e in node.incoming], incoming=True),
        _edges("Strongest out", view, [view.edges[e] for e in node.outgoing], incoming=False),
    ]
    return tag(
        "article",
        tag("h3", tag("code", node.name), " ", tag("span", _said(node), class_="soft")),
        _sum(node),
        tag("div", *lists, class_="columns"),
        id=f"n{i}",
        class_="node-words",
    )


def _said(node: ViewNode) -> str:
    parts = [KINDS[node.kind]]
    if node.kind != "target":
        parts.append(f"{percent(node.influence)} of influence")
    if node.kind == "latent":
        silent = node.value <= node.threshold
        threshold = "no threshold" if node.threshold == -inf else f"threshold {plain(node.threshold)}"
        parts.append(f"{'silent' if silent else 'on'}, {threshold}")
    return ", ".join(parts)


def _sum(node: ViewNode) -> Markup | None:
    """`edges + biases + not kept = pre-activation`, of nodes that are computed."""
    if node.kind not in ("latent", "target"):
        return None
    edges = node.value - node.bias - node.remainder
    terms = [("edges", edges), ("biases", node.bias), ("not kept", node.remainder)]
    parts = [tag("span", tag("b", signed(v)), f" {name}", class_="term-of") for name, v in terms]
    lost = f" ({percent(node.remainder_share)} of what flows in is not kept)" if node.remainder_share > 0 else ""
    return tag("p", join(*parts), tag("b", "= ", plain(node.value)), tag("span", lost, class_="soft"), class_="adds-up")


def _edges(title: str, view: GraphView, edges: list[ViewEdge], incoming: bool) -> Markup | None:
    if not edges:
        return None
    items = []
    for edge in edges:
        other = edge.source if incoming else edge.target
        look = "plus" if edge.weight > 0 else "minus"
        link = tag("a", view.nodes[other].name, href=f"#n{other}", data_id=other)
        weight = tag("span", signed(edge.weight), class_=f"weight {look}")
        share = tag("span", percent(edge.share), class_="soft")
        items.append(tag("li", tag("bdi", link), weight, share))
    unit = "share of what flows in" if incoming else "share of what flows into it"
    return tag(
        "div", tag("h4", title, tag("span", f" weight, {unit}", class_="unit")), tag("ol", *items, class_="edge-list")
    )
