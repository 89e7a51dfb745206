"""The pages of holes and of the ladder: whole, safe whatever the text, and seen in a real browser."""

import pytest

from understudy.core.records.holes import (
    EVERYWHERE,
    Cell,
    Concentration,
    Directions,
    Holes,
    LostToken,
    Returned,
    SiteError,
    SiteHoles,
    WorstPlace,
    WorstSequence,
)
from understudy.core.records.ladder import LadderCard, LadderRow, Understood
from understudy.core.records.metric import NotMeasured
from understudy.web import holes as holes_page
from understudy.web import ladder as ladder_page

from .reports import CODE, HOSTILE, measured
from .test_browser import browser as browser
from .test_page import Document

GONE = NotMeasured(not_measured="undefined on these sequences")


def made(texts: list[str], n_sites: int = 4) -> Holes:
    names = [f"mlp_out.{i}" for i in range(n_sites)]
    tokens = [LostToken(text=t, lost=0.3 * (i % 7) - 0.5, clean=2.0) for i, t in enumerate(texts)]
    shares = [Directions(rank=r, share=measured(r / 64, 0.01, "fraction"), chance=r / 192) for r in (1, 8)]
    back = [Returned(rank=r, recovered=measured(r / 20, 0.02, "fraction")) for r in (1, 8)]
    parts = [("string", None, None), ("comment", None, None)]
    bands = [("", 0, 0), ("", 1, 3), ("", 4, 255)]

    def cells(which: list) -> list[Cell]:
        return [
            Cell(
                arm=arm, slice=s, first=a, last=b, share=0.3, delta_loss=measured(0.2, 0.05), adds=measured(0.06, 0.01)
            )
            for arm in (EVERYWHERE, *names)
            for s, a, b in which
        ]

    return Holes(
        run="runs/x", network="demo", data=f"{texts[0]} (held out)", sequences=64, units=21, places=16000,
        loss_clean=measured(2.5, 0.1), loss_replaced=measured(2.7, 0.1), delta_loss=measured(0.2, 0.02),
        sum_alone=measured(0.15, 0.02), interaction=measured(0.05, 0.01),
        sites=[
            SiteHoles(
                name=name, alone=measured(0.04, 0.01), last=GONE if i == 1 else measured(0.05, 0.01), returned=back,
                errors=[SiteError(site=name, name=name, width=192, directions=shares, control=measured(-0.01, 0.0),
                                  predictable=measured(0.1, 0.01, "fraction"))],
            )
            for i, name in enumerate(names)
        ],
        returned=back, by_slice=cells(parts), by_position=cells(bands),
        cells=cells([("string", 4, 255)]), n_cells=100,
        concentration=[Concentration(places=0.01, of_excess=measured(0.3, 0.05, "fraction")),
                       Concentration(places=0.1, of_excess=measured(1.3, 0.1, "fraction"))],
        worst_places=[WorstPlace(before="".join(texts[:8]), token=t, position=9, slices=[texts[1]]) for t in tokens],
        worst_sequences=[WorstSequence(sequence=i, places=9, delta_loss=1 - i / 8, tokens=tokens) for i in range(3)],
        fit_rows=32768,
    )  # fmt: skip


def climbed(name: str = "ladder:x") -> LadderCard:
    rows = [
        LadderRow(name=f"{name}-{i}", parameters=10**5 * 3**i, tokens=10**6, flops=6e11 * 8**i, is_annealed=i != 1,
                  bits_per_byte=measured(2.3 - 0.3 * i, 0.1, "bits per byte"))
        for i in range(4)
    ]  # fmt: skip
    return LadderCard(
        data="stdlib", documents=9, bytes=10**5, rungs=rows, doubling=measured(0.92, 0.01, "factor"), misfit=GONE,
        network=name, bits_per_byte=measured(1.7, 0.1, "bits per byte"),
        equivalent_compute=measured(2e13, 4e12, "FLOPs"),
    )  # fmt: skip


def understood() -> list[Understood]:
    return [
        Understood(network=f"n{i}", parameters=10**5 * 3**i, loss_clean=measured(2.5), delta_loss=measured(0.2, 0.1),
                   recovered=measured(0.9 - i / 20, 0.03, "fraction"), l0=16.0, equivalent_compute=GONE)
        for i in range(3)
    ]  # fmt: skip


PAGES = {
    "holes": holes_page.render(made(CODE)),
    "hostile": holes_page.render(made(HOSTILE)),
    "one site": holes_page.render(made(CODE, 1)),
    "ladder": ladder_page.render(climbed(), understood()),
    "hostile ladder": ladder_page.render(climbed("<script>alert(1)</script>")),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_whole_and_load_nothing(name):
    page = Document(PAGES[name])
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.names.count("script") == 1
    assert "://" not in PAGES[name]
    assert "unsafe" not in PAGES[name]


def test_hostile_texts_stay_text():
    hostile, honest = Document(PAGES["hostile"]), Document(PAGES["holes"])
    assert set(hostile.names) == set(honest.names)
    assert hostile.attributes == honest.attributes
    assert "\x00" not in PAGES["hostile"]
    assert "&lt;script&gt;alert(1)" in PAGES["hostile ladder"]


def test_what_was_not_measured_says_why():
    assert "not measured: undefined on these sequences" in PAGES["holes"]
    assert "over 100% because other places gain" in PAGES["holes"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["holes", "hostile", "ladder"])
def test_in_a_browser(browser, tmp_path, name, width):
    """No request, message or dialog; nothing sticks out of a phone; charts and shaded tokens are seen."""
    (tmp_path / "page.html").write_text(PAGES[name], encoding="utf-8")
    address, troubles = (tmp_path / "page.html").as_uri(), []
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: request.url == address or troubles.append(request.url))
    tab.goto(address)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("h1").is_visible()
    assert tab.locator("figure").first.is_visible()
    if name != "ladder":
        assert tab.locator(".sample .text b").count() > 3
    tab.close()
    assert troubles == []
