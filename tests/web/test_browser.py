"""The page in a real browser: phone and desk, light and dark, filter, links, print, and no request at all."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.web import page

from .reports import HOSTILE, report

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SAMPLES = ["h1", "h1 strong", ".lead", ".interval", ".unit", ".q", "nav a", ".verdict.good", ".verdict.bad", "code"]
SAMPLES += [
    ".missing",
    ".dot-label",
    "thead th",
    ".feature-name",
    ".by",
    ".at",
    ".text i",
    "h4",
    "dd",
    "caption",
    ".tick",
    ".level-name",
    ".against",
]
CONTRAST = """(selector) => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = (rgb) => {
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const own = parse(getComputedStyle(node).backgroundColor);
    if (own[3] === 1 || !node.parentElement) return own;
    return over(own, ground(node.parentElement));
  };
  return [...document.querySelectorAll(selector)].slice(0, 40).map((node) => {
    const under = ground(node);
    const ink = over(parse(getComputedStyle(node)[node.localName === "text" ? "fill" : "color"]), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    missing = None if Path(CHROMIUM).exists() else f"{CHROMIUM} is not installed (apt-get install chromium)"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed (pip install understudy[dev])"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {"plain": report(50, 12), "hostile": report(5, 6, HOSTILE)}
    for name, what in made.items():
        (folder / f"{name}.html").write_text(page.render(what), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def visit(browser, pages: dict[str, Path]) -> Iterator:
    """Opens a page; at the end of the test there must have been no request, message, dialog or error."""
    contexts, troubles = [], []

    def opened(name: str = "plain", width: int = 1280, fragment: str = "", **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        address = pages[name].as_uri() + fragment
        tab.on("console", lambda message: troubles.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: _own(request.url, address) or troubles.append(f"request: {request.url}"))
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def _own(url: str, address: str) -> bool:
    return url.split("#")[0] == address.split("#")[0] or url.startswith("data:")


@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(visit, name: str, width: int) -> None:
    tab = visit(name, width)
    tab.evaluate("document.querySelectorAll('.layer, .more').forEach((d) => d.open = true)")
    tab.evaluate("[...document.querySelectorAll('.feature')].slice(0, 12).forEach((d) => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#L0-0 .text").first.is_visible()


def test_contrast_in_light_and_dark(visit) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        tab = visit(color_scheme=scheme)
        tab.evaluate("document.querySelectorAll('.feature')[1].open = true")
        grounds[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        for selector in [*SAMPLES, *(f".a{level}" for level in range(1, 10))]:
            ratios = tab.evaluate(CONTRAST, selector)
            assert ratios, f"nothing matches {selector}"
            assert min(ratios) >= 4.5, (scheme, selector, min(ratios))
    assert grounds["light"] != grounds["dark"]


def test_filter_sort_and_count(visit) -> None:
    tab = visit()
    shown = tab.locator(".feature:not([hidden])")
    assert shown.count() == 200
    tab.fill("#filter", "l1-8")
    tab.get_by_text("1 of 200 features", exact=True).wait_for()
    assert shown.count() == 1
    tab.fill("#filter", "no such text anywhere")
    tab.get_by_text("0 of 200 features", exact=True).wait_for()
    assert shown.count() == 0
    tab.fill("#filter", "tokenizer")
    tab.locator(".feature:not([hidden])").first.wait_for()
    assert 1 < shown.count() <= 200
    tab.fill("#filter", "")
    tab.get_by_text("200 features", exact=True).wait_for()
    assert shown.count() == 200
    tab.select_option("#sort", "maximum")
    order = "[...document.querySelectorAll('.layer')[0].querySelectorAll('.feature')].map((f) => +f.dataset.maximum)"
    values = tab.evaluate(order)
    assert values == sorted(values, reverse=True)


def test_links_open_their_feature(visit) -> None:
    tab = visit(fragment="#L2-9")
    assert tab.locator("#L2-9 .text").first.is_visible()
    assert tab.locator("#L2-9").evaluate("(e) => Math.abs(e.getBoundingClientRect().top) < 500")
    without = visit(fragment="#L2-9", java_script_enabled=False)
    assert without.locator("#L2-9 .text").first.is_visible()


def test_reads_without_a_script_and_by_keyboard(visit) -> None:
    tab = visit(java_script_enabled=False)
    assert not tab.locator("#controls").is_visible()
    tab.locator(".feature > summary").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#L0-0 .text").first.is_visible()


def test_activation_shows_under_the_pointer(visit) -> None:
    tab = visit()
    tab.locator(".feature > summary .feature-name").first.click()
    tab.locator("#L0-0 .text b.peak").first.hover()
    assert tab.locator(".bubble").inner_text().startswith("activation ")


def test_hostile_texts_are_shown_as_text(visit) -> None:
    tab = visit("hostile")
    assert tab.locator("script").count() == 1
    assert "</script>" in tab.locator("#L0-0").evaluate("(e) => e.closest('.layer').textContent")
    tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert tab.locator("img").count() == 0


def test_prints(visit) -> None:
    tab = visit()
    paper = tab.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", paper)) < 60
    tab.emulate_media(media="print")
    assert not tab.locator("nav").is_visible()
    assert tab.locator(".feature > summary").last.is_visible(), "layers open on paper"
