"""The report as one self-contained HTML file: nothing is loaded from elsewhere, and only our script may run."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from understudy.core.records.scorecard import Report
from understudy.web import sections
from understudy.web.glossary import glossary
from understudy.web.markup import Child, Markup, raw, tag
from understudy.web.tables import section
from understudy.web.verdict import headline

CONTENTS = {
    "rivals": "Rivals",
    "recovered": "Recovered",
    "dictionaries": "Dictionaries",
    "places": "Where lost",
    "rollout": "Rollout",
    "training": "Training",
    "features": "Features",
    "definitions": "Definitions",
    "provenance": "Provenance",
}


def render(report: Report) -> str:
    """The page for `report`. Every text in it is escaped; the policy refuses any script but ours, and every request."""
    card = report.scorecard
    parts: dict[str, Markup | None] = {
        "rivals": sections.rivals(card),
        "recovered": sections.recovered(card),
        "dictionaries": sections.dictionaries(card),
        "places": sections.places(card),
        "rollout": sections.rollout(card),
        "training": sections.training(report),
        "features": sections.features(report),
        "definitions": section("definitions", "Definitions", glossary()),
        "provenance": sections.provenance(report),
    }
    links = [tag("li", tag("a", CONTENTS[key], href=f"#{key}")) for key, part in parts.items() if part]
    return document(
        f"Understudy: {card.run}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        headline(card),
        tag("nav", tag("ul", *links), aria_label="Contents"),
        tag("main", *parts.values(), id="main"),
    )


def document(title: str, *body: Child, also: str | None = None) -> str:
    """A whole page that loads nothing: our style sheet, our script, and the policy that refuses any other.

    also: a second sheet and script of ours, by name (`graph`).
    """
    names = ["page", also] if also else ["page"]
    style, script = ("".join(_static(f"{name}.{kind}") for name in names) for kind in ("css", "js"))
    inside = tag("body", *body, raw("script", script))
    return "<!doctype html>\n" + tag("html", _head(title, style, script), inside, lang="en") + "\n"


def _head(title: str, style: str, script: str) -> Markup:
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        raw("style", style),
    )


@cache
def _static(name: str) -> str:
    return (files("understudy.web") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls the hash of an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
