"""The picture of a graph: every node a link to its description, every edge a line as wide as its share."""

import math

from understudy.core.records.graph_view import GraphView, ViewNode
from understudy.web.graph.layout import LONGEST, SLOT, Layout
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import percent

LEAST, MOST = 3.0, 10.5
"""Pixels from the middle of a mark to its edge."""
NAMES, LETTERS = 84, 12
"""Pixels for the names of rows, and letters of a name that fit."""
TARGET_LETTERS = 23


def picture(view: GraphView, layout: Layout) -> Markup:
    """Names of rows, which stay, and the graph, which scrolls beside them."""
    most = max((n.influence for n in view.nodes if n.kind in ("latent", "error")), default=0) or 1.0
    names = [
        tag(
            "text",
            name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}",
            x=NAMES - 10,
            y=y + height / 2 + 4,
            text_anchor="end",
        )
        for name, (y, height) in zip(view.levels, layout.rows, strict=True)
    ]
    aside = tag("svg", *names, class_="graph-names", width=NAMES, height=layout.height, aria_hidden="true")
    bands = [
        tag("rect", x=0, y=y, width=layout.width, height=height, class_="band")
        for y, height in layout.rows[1 : len(layout.rows) - 1 : 2]
    ]
    flow = (view.edges[0].flow if view.edges else 0.0) or 1.0
    edges = [_edge(view, layout, i, flow) for i in reversed(range(len(view.edges)))]
    nodes = [_node(view, i, layout.at[i], most) for i in sorted(layout.at, key=lambda i: (-view.nodes[i].level, i))]
    scene = tag(
        "svg", *bands, *_tokens(view, layout), tag("g", *edges, class_="edges"), tag("g", *nodes, class_="nodes"),
        class_="graph", width=layout.width, height=layout.height, role="group",
        aria_label="The graph: inputs at the bottom, targets on top. Every node is a link to its description.",
    )  # fmt: skip
    return tag("div", aside, tag("div", scene, class_="graph-scroll"), class_="graph-frame")


def letters(text: str) -> str:
    """A token in few letters; blanks are glyphs."""
    shown = text.replace("\n", "↵").replace("\t", "⇥").replace("  ", "··").strip(" ") or "·"
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _tokens(view: GraphView, layout: Layout) -> list[Markup]:
    y, height = layout.rows[0]
    out = []
    for place, (left, width) in layout.columns.items():
        token = view.card.tokens[place] if 0 <= place < len(view.card.tokens) else ("" if place < 0 else f"[{place}]")
        middle = left + width / 2
        out.append(tag("text", letters(token), x=middle, y=y + height - 19, text_anchor="middle", class_="token"))
        number = str(place) if place >= 0 else ""
        out.append(tag("text", number, x=middle, y=y + height - 5, text_anchor="middle", class_="number"))
    return out


def _edge(view: GraphView, layout: Layout, i: int, flow: float) -> Markup | None:
    edge = view.edges[i]
    if edge.source not in layout.at or edge.target not in layout.at:
        return None
    (x, y), (u, v) = layout.at[edge.source], layout.at[edge.target]
    bend = max(18.0, abs(y - v) * 0.45)
    look = f"{'plus' if edge.weight > 0 else 'minus'} {_size(edge.share)}"
    return tag(
        "path", d=f"M{x:g} {y:g}C{x:g} {y - bend:g} {u:g} {v + bend:g} {u:g} {v:g}",
        class_=look if i < view.drawn else f"{look} quiet", data_from=edge.source, data_to=edge.target,
        stroke_width=round(0.6 + 6 * math.sqrt(edge.share), 2),
        stroke_opacity=round(0.06 + 0.6 * math.sqrt(edge.flow / flow), 3),
    )  # fmt: skip


def _size(share: float) -> str:
    """How strongly an edge shows when its node is chosen."""
    return "large" if share >= 0.04 else "middling" if share >= 0.01 else "small"


def _node(view: GraphView, i: int, at: tuple[float, float], most: float) -> Markup:
    node, (x, y) = view.nodes[i], at
    size = LEAST + (MOST - LEAST) * math.sqrt(min(1.0, node.influence / most))
    label = None
    if node.kind == "target":
        size = 6.0
        short = node.name if len(node.name) <= TARGET_LETTERS else f"{node.name[: TARGET_LETTERS - 1]}…"
        label = tag("text", short, x=x + 14, y=y + 4, class_="target-name")
    said = f"{node.name}, {_what(node)}"
    return tag(
        "a", tag("title", said), tag("circle", cx=x, cy=y, r=SLOT / 2, class_="reach"), _mark(node, x, y, size), label,
        href=f"#n{i}", class_=f"node is-{node.kind}{' is-silent' if _silent(node) else ''}", data_id=i,
        data_rank=round(node.rank, 6), aria_label=said,
    )  # fmt: skip


def _what(node: ViewNode) -> str:
    if node.kind == "target":
        return "a target"
    return f"{'an' if node.kind in ('input', 'error') else 'a'} {node.kind}, {percent(node.influence)} of influence"


def _silent(node: ViewNode) -> bool:
    return node.kind == "latent" and node.value <= node.threshold


def _mark(node: ViewNode, x: float, y: float, size: float) -> Markup:
    if node.kind in ("latent", "input"):
        return tag("circle", cx=x, cy=y, r=round(size, 1), class_="mark")
    side = round(size * 1.55, 1)
    turned = f"rotate(45 {x:g} {y:g})" if node.kind == "error" else None
    square = {"x": round(x - side / 2, 1), "y": round(y - side / 2, 1), "width": side, "height": side}
    return tag("rect", **square, transform=turned, class_="mark")


def key(view: GraphView) -> Markup:
    """What marks and lines mean."""
    marks = [("latent", "latent"), ("error", "error"), ("input", "input"), ("target", "target")]
    if any(_silent(node) for node in view.nodes):
        marks.insert(1, ("latent is-silent", "silent latent"))
    entries = [
        tag(
            "span",
            tag("svg", tag("g", _mark(_example(kind.split()[0]), 8, 8, 5), class_=f"is-{kind}"), width=16, height=16,
                class_="key-mark", aria_hidden="true"),
            name, class_="legend-entry",
        )
        for kind, name in marks
    ]  # fmt: skip
    lines = [("plus", "adds"), ("minus", "takes away")]
    entries += [tag("span", tag("span", class_=f"key {look}"), name, class_="legend-entry") for look, name in lines]
    return tag("p", join(*entries), class_="legend")


def _example(kind: str) -> ViewNode:
    return ViewNode.model_construct(kind=kind)
