"""The page of a ladder: loss against training compute, and the share understood against size. One file."""

from collections.abc import Sequence

from understudy.core.records.ladder import LadderCard, Understood
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import figure
from understudy.web.page import document
from understudy.web.sections import ladder as sections


def render(card: LadderCard, understood: Sequence[Understood] = ()) -> str:
    """The page for `card`, with what one recipe of dictionaries understands of each rung where that was measured."""
    return document(
        f"Ladder on {card.data}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        _headline(card),
        tag("main", sections.rungs(card), sections.understood(understood), id="main"),
    )


def _headline(card: LadderCard) -> Markup:
    fitted = sum(r.is_annealed for r in card.rungs)
    where = f"{card.documents:,} documents of {card.data}, {card.bytes:,} bytes; intervals are 95%, over documents."
    return tag(
        "header",
        tag("p", "Ladder", class_="kicker"),
        tag("h1", _sentence(card) if card.network else f"{fitted} networks of known training compute", id="verdict"),
        tag("p", where, class_="where"),
        class_="headline",
    )


def _sentence(card: LadderCard) -> Markup:
    return join(tag("strong", card.network), " predicts as the ladder does at ", figure(card.equivalent_compute), ".")
