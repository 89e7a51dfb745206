"""The page of a graph. Every text in it is escaped; it loads nothing."""

from understudy.core.records.graph import GraphScores
from understudy.core.records.graph_view import GraphView
from understudy.web.glossary import glossary, term
from understudy.web.graph.layout import arrange
from understudy.web.graph.picture import key, picture
from understudy.web.graph.terms import TERMS
from understudy.web.graph.words import article
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.names import listed
from understudy.web.numerals import figure, percent
from understudy.web.page import document
from understudy.web.tables import section, table
from understudy.web.tokens import visible

TEXT = 60
"""Tokens of the input that the headline shows, the last ones."""


def render(view: GraphView) -> str:
    """The page for `view`."""
    parts = [
        _graph(view),
        _kept(view),
        _nodes(view),
        section("definitions", "Definitions", glossary(TERMS)),
        _origin(view),
    ]
    return document(
        f"Understudy: {view.title}",
        tag("a", "Skip to the graph", href="#graph", class_="skip"),
        _headline(view),
        tag("main", *parts, id="main"),
        also="graph",
    )


def _headline(view: GraphView) -> Markup:
    card = view.card
    best = max(card.targets, key=lambda t: t.weight, default=None)
    others = len(card.targets) - 1
    more = f" and {others} other target{'s' if others > 1 else ''}" if others > 0 else ""
    said = join("What adds up to ", tag("strong", best.name if best else "nothing"), more)
    tokens = card.tokens[-TEXT:]
    text = [tag("i", "… ") if len(card.tokens) > TEXT else None, *(visible(t, whole_token=False) for t in tokens)]
    live = card.live
    exact = card.certificate
    figures: list[tuple[Markup, Child]] = [
        (_term("live", "Live: R²"), figure(live.r2, unit=False, with_percent=False)),
        (_term("live", "Live: rank correlation"), figure(live.rank, unit=False, with_percent=False)),
        (_term("replacement"), figure(view.whole.replacement)),
        (_term("completeness"), figure(view.whole.completeness)),
        (_term("exact"), tag("span", "not certified" if exact is None else "exact" if exact.exact else "not exact",
                             class_="value")),
    ]  # fmt: skip
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in figures)
    return tag(
        "header",
        tag("p", "Understudy ", tag("span", view.title), class_="kicker"),
        tag("h1", said),
        tag("p", tag("bdi", *text, dir="ltr"), class_="text prompt") if tokens else None,
        tag("dl", *pairs, class_="key-figures"),
        tag("p", _shown(view), class_="where"),
        class_="headline",
    )


def _shown(view: GraphView) -> Markup:
    kinds = [f"{n:,} {kind}{_plural(kind, n)}" for kind, n in view.shown.kinds.items() if n]
    whole = f"{view.whole.nodes:,} nodes and {view.whole.edges:,} edges, {view.drawn:,} edges drawn"
    return join(
        "Shown: ",
        tag("b", listed(kinds)),
        f" of a graph of {whole}. What is not shown is in the sums as not kept.",
    )


def _plural(kind: str, n: int) -> str:
    return "" if n == 1 else "es" if kind == "bias" else "s"


def _graph(view: GraphView) -> Markup:
    cut = tag("input", type="range", id="cut", min=1, max=100, value=100, step=1)
    label = tag("label", tag("span", "Share of influence shown"), cut, for_="cut")
    out = tag("output", "100%", id="cut-said", for_="cut")
    controls = tag("div", label, tag("p", out), class_="controls", id="graph-controls", hidden=True)
    lead = "From the inputs below to the targets above, place by place. Every node adds to those it is joined to."
    hint = "Choose a node to see what adds up to it. Arrow keys follow the strongest edges, Escape lets go."
    panel = tag("div", tag("p", hint, class_="soft"), id="chosen", class_="chosen", aria_live="polite")
    body = tag("div", picture(view, arrange(view)), panel, class_="graph-and-words")
    return section("graph", "The graph", tag("div", key(view), controls, class_="graph-head"), body, lead=lead)


def _kept(view: GraphView) -> Markup:
    def row(name: str, found: GraphScores) -> list[Child]:
        ends = (figure(getattr(found, k)) for k in ("inputs", "biases", "errors", "remainder"))
        return [
            name,
            f"{found.nodes:,}",
            f"{found.edges:,}",
            figure(found.replacement),
            figure(found.completeness),
            *ends,
        ]

    head = ["", "Nodes", "Edges", _term("replacement"), _term("completeness"), "Ends at inputs", "at biases",
            _term("error", "at errors"), _term("remainder", "not kept")]  # fmt: skip
    rows = [row("the graph", view.whole), row("what is shown", view.shown)]
    lead = "Where the targets' influence ends. Leaving nodes out moves it from inputs to what is not kept."
    return section(
        "scores", "What is explained", table("Scores of the graph and of what is shown", head, rows), lead=lead
    )


def _nodes(view: GraphView) -> Markup:
    order = sorted(range(len(view.nodes)), key=lambda i: (-(view.nodes[i].kind == "target"), -view.nodes[i].influence))
    articles = [article(view, i) for i in order if view.nodes[i].kind != "bias"]
    summary = tag("summary", f"All {len(articles):,} nodes in words, the most influential first")
    return section("nodes", "Nodes", tag("details", summary, *articles, class_="more", id="words"))


def _origin(view: GraphView) -> Markup:
    card, pairs = view.card, []
    pairs = [("network", card.network), ("fingerprint", card.network_fingerprint), ("run", card.run or "none")]
    pairs += [("dictionary", f"{d.name or d.writes[0]}: {d.kind}, {d.n_latents:,} latents, {d.fingerprint}")
              for d in card.dictionaries]  # fmt: skip
    pairs += [("since", what) for what in view.history]
    if card.certificate:
        pairs += [
            ("frozen", f"{f.rule} in {len(f.modules)} modules: {_lost(f.share)}") for f in card.certificate.frozen
        ]
    if card.note:
        pairs.append(("note", card.note))
    found = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs)
    return section("origin", "Provenance", tag("dl", *found, class_="provenance"))


def _lost(share) -> str:
    value = getattr(share, "value", None)
    return str(share) if value is None else f"{percent(value)} of the targets' live change is lost by it"


def _term(name: str, label: str | None = None) -> Markup:
    return term(name, label, TERMS)
