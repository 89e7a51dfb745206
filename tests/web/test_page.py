"""The page as a document: whole, safe whatever the texts, and made without torch."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from understudy.core.records.metric import NotMeasured
from understudy.core.records.scorecard import (
    Acting,
    Behaviour,
    Recovered,
    Replaced,
    Report,
    Rollout,
    Scorecard,
)
from understudy.web import page
from understudy.web.glossary import TERMS
from understudy.web.markup import VOID

from .reports import HOSTILE, measured, report

WEB = Path(page.__file__).parent


class Document(HTMLParser):
    """Open elements, ids, links and attributes of a page; fails at the first unbalanced tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def hostile() -> str:
    return page.render(report(4, 6, HOSTILE))


@pytest.fixture(scope="module")
def plain() -> str:
    return page.render(report(3, 4))


def test_hostile_tokens_stay_text(hostile: str, plain: str) -> None:
    made, honest = Document(hostile), Document(plain)
    assert made.names.count("script") == 1
    assert made.names.count("style") == 1
    assert set(made.names) == set(honest.names), "no element comes from a token"
    assert made.attributes == honest.attributes, "no attribute comes from a token"
    assert not {"img", "iframe", "plaintext"} & set(made.names)
    assert not any(name.startswith("on") or name == "style" for name in made.attributes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile
    hostile.encode("utf-8")
    assert "\x00" not in hostile
    assert "\u202e" not in hostile


def test_links_lead_to_something_on_the_page(hostile: str, plain: str) -> None:
    for text in (hostile, plain):
        made = Document(text)
        assert len(made.ids) == len(set(made.ids))
        assert {link[1:] for link in made.links if link.startswith("#")} <= set(made.ids)
        assert all(link.startswith(("#", "data:,")) for link in made.links)
        assert {f"def-{key.replace('_', '-')}" for key in TERMS} <= set(made.ids)
    assert "L0-7" in Document(plain).ids


def test_policy_allows_our_script_only(plain: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', plain)
    assert policy
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe" not in policy[1]
    assert "://" not in plain


def test_every_layer_and_feature_is_there(plain: str) -> None:
    ids = Document(plain).ids
    found = report(3, 4).features
    wanted = {f"L{i}-{feature.latent}" for i, features in enumerate(found.values()) for feature in features}
    assert wanted <= set(ids)


def test_a_report_of_nothing_says_why_and_shows_no_zero() -> None:
    gone = NotMeasured(not_measured="the network has no loss")
    behaviour = Behaviour(
        loss_clean=gone,
        loss_replaced=gone,
        delta_loss=gone,
        kl=gone,
        top1_agreement=gone,
        recovered=Recovered(zero=gone, mean=gone, position_mean=gone, resample=gone),
        equivalent_ngram=gone,
        equivalent_compute=gone,
    )
    card = Scorecard(
        run="r",
        network="n",
        data="d",
        replaced=Replaced(modules=[], share_of_parameters=0.0, share_of_compute=0.0, still_original=[]),
        dictionaries=[],
        replacement=behaviour,
        baselines={},
        slices=[],
        positions=[],
        rollout=Rollout(),
    )
    text = page.render(Report(scorecard=card, features={}, curves=[], provenance={}))
    Document(text)
    assert "not measured: the network has no loss" in text
    assert "plays no part" in text


def test_a_network_of_pictures_has_no_headline_of_ngrams_and_no_empty_part() -> None:
    """One scored place a picture, no text: once `By position` was a heading over nothing."""
    whole = report(1, 1)
    no_text, no_tokens = (NotMeasured(not_measured=f"{x}") for x in ("it does not write text", "n-grams need tokens"))
    card = whole.scorecard
    card = card.model_copy(
        update={
            "replacement": card.replacement.model_copy(update={"equivalent_ngram": no_tokens}),
            "ngram_losses": {},
            "slices": [],
            "positions": card.positions[:1],
            "rollout": Rollout(loss_of_network_text=no_text, loss_of_replaced_text=no_text, delta_loss=no_text),
        }
    )
    made = page.render(whole.model_copy(update={"scorecard": card}))
    verdict = made[made.index('id="verdict"') : made.index("</h1>")]
    assert "gram" not in verdict
    assert 'id="places"' not in made
    assert "By position" not in made
    rollout = made[made.index('id="rollout"') : made.index('id="training"')]
    assert rollout.count("it does not write text") == 1
    assert "from the same prompts" not in rollout
    assert "no n-gram model was fitted" not in made
    assert "gram" in page.render(whole).partition("</h1>")[0]


def test_a_policy_leads_with_what_it_earns_and_says_that_its_features_are_not_shown() -> None:
    earned = {
        name: measured(value, 20, "points")
        for name, value in (
            ("of_network", 261),
            ("of_understudy", 257),
            ("of_random_actions", -190),
            ("difference", -4),
        )
    }
    acting = Acting(episodes=32, **earned, recovered=measured(0.99, 0.05, "fraction"))
    whole = report(1, 1)
    card = whole.scorecard.model_copy(update={"acting": acting, "slices": []})
    made = page.render(whole.model_copy(update={"scorecard": card, "features": {}}))
    lead = made[made.index('class="key-figures"') : made.index("<nav")]
    assert "Return kept" in lead
    assert ">257<" in lead
    assert "n-gram" not in lead
    assert "not shown: what it reads is numbers" in made
    assert "Slices are sorted" not in made


def test_the_page_is_made_without_torch() -> None:
    code = "import sys, understudy.web.page; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {p.name: n for p in WEB.rglob("*.*") if p.suffix in (".py", ".css", ".js") and (n := _lines(p)) >= 300}
    assert not long


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")
