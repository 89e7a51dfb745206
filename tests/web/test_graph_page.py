"""The page of a graph: safe whatever the texts, true to its numbers, and usable by pointer, finger and keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.graphs import HOSTILE, card, graph_of, layered
from tests.web.test_browser import CONTRAST, browser  # noqa: F401
from tests.web.test_page import Document
from understudy.core.graph import Graph
from understudy.core.records.graph import KINDS
from understudy.core.records.graph_view import GraphView
from understudy.web.graph import render
from understudy.web.graph.layout import SLOT, arrange
from understudy.web.graph.picture import letters
from understudy.web.graph.terms import TERMS
from understudy.workflows.view import ViewConfig, view

TOKENS = (" def", HOSTILE, "\n    ", "\u202e\x00", " x", '"><img src=x onerror=alert(1)>')


def viewed(graph: Graph, folder: Path, **options) -> GraphView:
    return view(ViewConfig(graph=graph.save(folder / "X.acg"), **options))


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> GraphView:
    graph, _ = layered(0, layers=4, tokens=[f" t{i}" for i in range(12)], per_cell=5, biases=True)
    return viewed(graph, tmp_path_factory.mktemp("plain"), nodes=60, edges=200)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> GraphView:
    graph, _ = layered(0, tokens=TOKENS, biases=True)
    names = [HOSTILE, "' b' (p=0.40)"]
    found = viewed(graph, tmp_path_factory.mktemp("hostile"))
    targets = [t.model_copy(update={"name": n}) for t, n in zip(found.card.targets, names)]
    nodes = [n.model_copy(update={"name": HOSTILE}) if n.kind == "target" else n for n in found.nodes]
    changed = {"targets": targets, "network": HOSTILE, "note": HOSTILE}
    return found.model_copy(update={"card": found.card.model_copy(update=changed), "nodes": nodes, "title": HOSTILE})


# -- the document -----------------------------------------------------------------------------------------------------


def test_hostile_texts_stay_text(hostile, shown):
    text, honest = render(hostile), Document(render(shown))
    made = Document(text)
    assert made.names.count("script") == 1
    assert set(made.names) <= set(honest.names) | {"i"}, "no element comes from a token"
    assert made.attributes <= honest.attributes, "no attribute comes from a token"
    assert "&lt;/script&gt;" in text
    assert "\x00" not in text
    assert "\u202e" not in text
    text.encode("utf-8")


def test_nothing_is_loaded_and_links_lead_somewhere(shown):
    text = render(shown)
    made = Document(text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe" not in policy[1]
    assert "://" not in text
    assert len(made.ids) == len(set(made.ids))
    assert {link[1:] for link in made.links if link.startswith("#")} <= set(made.ids)
    assert {f"def-{key}" for key in TERMS} <= set(made.ids)


def test_every_node_is_described_with_its_sum(shown):
    text = render(shown)
    drawn = [i for i, n in enumerate(shown.nodes) if n.kind != "bias"]
    assert {f"n{i}" for i in drawn} <= set(Document(text).ids)
    for node in shown.nodes:
        into = sum(shown.edges[e].weight for e in node.incoming)
        if node.kind in ("latent", "target") and len(node.incoming) < 7:
            # All its edges are listed, so the sum on the page can be checked by hand.
            assert into + node.bias + node.remainder == pytest.approx(node.value, abs=1e-4)


def test_a_graph_of_hardly_anything(tmp_path):
    a = torch.zeros(2, 2, dtype=torch.float64)
    a[1, 0] = -1.5
    base = card(0, [], [1.0]).model_copy(update={"shape": (), "tokens": [], "inputs": {}})
    columns = {"kind": [KINDS.index("input"), KINDS.index("target")], "dictionary": [-1, -1], "latent": [-1, 0],
               "place": [-1, -1], "site": [0, -1]}  # fmt: skip
    found = viewed(graph_of(a, columns, base), tmp_path)
    assert found.levels == ["inputs", "targets"]
    Document(render(found))


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_what_is_shown_is_the_most_influential_and_sums_are_whole(tmp_path):
    from understudy.pruning import influence

    graph, _ = layered(1, layers=4, per_cell=6, biases=True)
    found = viewed(graph, tmp_path, nodes=20, edges=50)
    counted = [n.influence for n in found.nodes if n.kind in ("latent", "error")]
    may_go = graph.nodes.where("latent") | graph.nodes.where("error")
    best = influence(graph)[may_go].sort(descending=True).values[:20]
    assert sorted(counted, reverse=True) == pytest.approx(best.tolist())
    assert found.whole.nodes == len(graph)
    assert found.drawn == 50
    flows = [e.flow for e in found.edges]
    assert flows == sorted(flows, reverse=True)
    for i, node in enumerate(found.nodes):
        assert all(found.edges[e].target == i for e in node.incoming)
        assert all(found.edges[e].source == i for e in node.outgoing)
        shares = [found.edges[e].share for e in node.incoming]
        assert shares == sorted(shares, reverse=True)
    assert max(n.rank for n in found.nodes) == pytest.approx(1)


def test_silent_latents_are_shown_hollow_with_what_held_them_down(tmp_path):
    """They lead nowhere and have no influence, so they are shown for being near their threshold."""
    graph, _ = layered(1, layers=3, per_cell=8)
    silent = graph.nodes.where("latent").nonzero().flatten()[::3]
    keep = ~torch.isin(graph.rows.sources.long(), silent)
    graph = graph.keep(torch.ones(len(graph), dtype=torch.bool), keep)
    graph.nodes.threshold[silent] = graph.nodes.value[silent] + torch.rand(len(silent))
    found = viewed(graph, tmp_path, nodes=10)
    below = [n for n in found.nodes if n.kind == "latent" and n.value <= n.threshold]
    nearest = (graph.nodes.threshold - graph.nodes.value)[silent].sort().values[:12]
    assert sorted(n.threshold - n.value for n in below) == pytest.approx(nearest.tolist(), abs=1e-5)
    assert any(n.incoming for n in below)
    assert render(found).count('is-latent is-silent" data-id') == len(below) == 12


def test_nodes_lie_in_their_row_and_column_and_not_on_each_other(shown):
    layout = arrange(shown)
    assert len(set(layout.at.values())) == len(layout.at)
    points = list(layout.at.values())
    for i, (x, y) in enumerate(points):
        assert 0 <= x <= layout.width
        assert 0 <= y <= layout.height
        assert all(abs(x - u) + abs(y - v) >= 0.8 * SLOT for u, v in points[:i])
    for i, (x, y) in layout.at.items():
        node = shown.nodes[i]
        top, height = layout.rows[node.level]
        assert top <= y <= top + height
        if node.kind != "target":
            left, width = layout.columns[node.place]
            assert left <= x <= left + width
    heights = [layout.rows[n.level][0] for n in shown.nodes]
    assert max(heights) == layout.rows[0][0], "inputs lie lowest"


def test_tokens_in_few_letters():
    assert letters(" def") == "def"
    assert letters("\n    ") == "↵····"
    assert letters(" ") == "·"
    assert letters("") == "·"
    assert letters("internationalisation") == "internat…"


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory, shown, hostile) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, what in {"plain": shown, "hostile": hostile}.items():
        (folder / f"{name}.html").write_text(render(what), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("plain", "hostile")}


@pytest.fixture
def visit(browser, pages) -> Iterator:  # noqa: F811
    """Opens a page; at the end of the test there must have been no request, message, dialog or error."""
    contexts, troubles = [], []

    def opened(name: str = "plain", width: int = 1280, fragment: str = "", **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        address = pages[name].as_uri()
        tab.on("console", lambda message: troubles.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda r: r.url.split("#")[0] == address or troubles.append(f"request: {r.url}"))
        tab.goto(address + fragment)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.mark.browser
@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(visit, name, width):
    tab = visit(name, width)
    tab.evaluate("document.getElementById('words').open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("script").count() == 1
    assert tab.locator("img").count() == 0


@pytest.mark.browser
def test_contrast_in_light_and_dark(visit):
    for scheme in ("light", "dark"):
        tab = visit(color_scheme=scheme)
        for selector in (".chosen code", ".weight.plus", ".token", ".target-name", ".graph-names text", ".chosen .soft",
                         ".number", ".legend-entry", ".chosen .unit", "output", ".adds-up"):  # fmt: skip
            ratios = tab.evaluate(CONTRAST, selector)
            assert ratios, f"nothing matches {selector}"
            assert min(ratios) >= 4.5, (scheme, selector, min(ratios))


@pytest.mark.browser
def test_a_node_under_the_pointer_shows_its_edges(visit, shown):
    tab = visit()
    target = next(i for i, n in enumerate(shown.nodes) if n.kind == "target")
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[target].name
    i = next(i for i, n in enumerate(shown.nodes) if n.kind == "latent" and n.incoming and n.outgoing)
    tab.locator(f".node[data-id='{i}'] .mark").hover()
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[i].name
    lit = tab.eval_on_selector_all(".edges path.on", "(all) => all.map((e) => [e.dataset.from, e.dataset.to])")
    ours = {(str(e.source), str(e.target)) for e in shown.edges if i in (e.source, e.target)}
    assert {tuple(pair) for pair in lit} <= ours
    assert len(lit) >= len({*shown.nodes[i].incoming, *shown.nodes[i].outgoing})
    tab.locator("h1").hover()
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[target].name, "what was chosen comes back"
    tab.locator(f".node[data-id='{i}'] .mark").click()
    tab.locator("h1").hover()
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[i].name
    tab.locator("#chosen a").first.click()
    best = shown.edges[shown.nodes[i].incoming[0]].source
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[best].name
    tab.keyboard.press("Escape")
    assert tab.locator("#chosen article").count() == 0
    assert tab.locator(".on").count() == 0


@pytest.mark.browser
def test_the_keyboard_reaches_nodes_and_follows_edges(visit, shown):
    tab = visit()
    tab.focus("#cut")
    tab.keyboard.press("Tab")
    while tab.evaluate("!document.activeElement.closest('.node')"):
        tab.keyboard.press("Tab")
    here = int(tab.evaluate("document.activeElement.dataset.id"))
    assert shown.nodes[here].kind == "target"
    tab.keyboard.press("ArrowDown")
    below = int(tab.evaluate("document.activeElement.dataset.id"))
    assert below == shown.edges[shown.nodes[here].incoming[0]].source
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[below].name
    tab.keyboard.press("ArrowUp")
    above = int(tab.evaluate("document.activeElement.dataset.id"))
    assert above == shown.edges[shown.nodes[below].outgoing[0]].target


@pytest.mark.browser
def test_the_slider_hides_what_has_little_influence(visit, shown):
    tab = visit()
    every = tab.locator(".node").count()
    tab.locator("#cut").fill("60")
    left = {int(i) for i in tab.eval_on_selector_all(".node:not(.off)", "(all) => all.map((n) => n.dataset.id)")}
    wanted = {i for i, n in enumerate(shown.nodes) if n.kind in ("input", "target") or n.rank <= 0.6}
    drawn = {int(i) for i in tab.eval_on_selector_all(".node", "(all) => all.map((n) => n.dataset.id)")}
    assert left == wanted & drawn
    assert len(left) < every
    assert tab.locator("#cut-said").inner_text() == f"60%: {len(left)} of {every} nodes"
    visible = tab.eval_on_selector_all(
        ".edges path",
        "(all) => all.filter((e) => getComputedStyle(e).display != 'none').map((e) => [e.dataset.from, e.dataset.to])",
    )
    assert all({int(a), int(b)} <= left for a, b in visible)
    tab.locator("#cut").fill("100")
    assert tab.locator(".node.off").count() == 0


@pytest.mark.browser
def test_a_finger_chooses_on_a_phone(visit, shown):
    tab = visit(width=390, has_touch=True, is_mobile=True)
    assert tab.locator("#chosen article").count() == 0
    i = max((i for i, n in enumerate(shown.nodes) if n.kind == "latent"), key=lambda i: shown.nodes[i].place)
    tab.locator(f".node[data-id='{i}'] .mark").tap()
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[i].name
    box = tab.locator("#chosen").bounding_box()
    assert box["y"] + box["height"] <= 801
    assert tab.locator("#chosen").is_visible()


@pytest.mark.browser
def test_reads_without_a_script(visit, shown):
    tab = visit(java_script_enabled=False)
    assert not tab.locator("#graph-controls").is_visible()
    assert tab.locator(".edges path:not(.quiet)").count() > 100
    i = next(i for i, n in enumerate(shown.nodes) if n.kind == "latent")
    tab.locator(f".node[data-id='{i}']").focus()
    tab.keyboard.press("Enter")
    assert tab.locator(f"#n{i} h3").is_visible()


@pytest.mark.browser
def test_links_to_a_node_open_it(visit, shown):
    i = next(i for i, n in enumerate(shown.nodes) if n.kind == "latent")
    tab = visit(fragment=f"#n{i}")
    assert tab.locator("#chosen code").first.inner_text() == shown.nodes[i].name


@pytest.mark.browser
def test_prints(visit):
    tab = visit()
    assert tab.pdf(format="A4").startswith(b"%PDF")
