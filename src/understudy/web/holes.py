"""The page of holes: where a run loses its nats. One file that needs nothing else."""

from understudy.core.records.holes import Holes
from understudy.core.records.metric import Measured
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import figure
from understudy.web.page import document
from understudy.web.sections import holes as sections

CONTENTS = {"sites": "By site", "errors": "The error", "parts": "By slice and position", "worst": "The worst text"}


def render(holes: Holes) -> str:
    """The page for `holes`; every text in it is escaped."""
    parts: dict[str, Markup | None] = {
        "sites": sections.sites(holes),
        "errors": sections.errors(holes),
        "parts": sections.parts(holes),
        "worst": sections.worst(holes),
    }
    links = [tag("li", tag("a", CONTENTS[key], href=f"#{key}")) for key, part in parts.items() if part]
    return document(
        f"Holes: {holes.run}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        _headline(holes),
        tag("nav", tag("ul", *links), aria_label="Contents"),
        tag("main", *parts.values(), id="main"),
    )


def _headline(holes: Holes) -> Markup:
    over = f"{holes.units:,} documents" if holes.units < holes.sequences else "sequences"
    where = (
        f"{holes.network} on {holes.data}: {holes.sequences:,} sequences, {holes.places:,} scored places; intervals "
        f"are 95%, over {over}."
    )
    return tag(
        "header",
        tag("p", "Holes ", tag("span", holes.run, class_="kicker"), class_="kicker"),
        tag("h1", _sentence(holes), id="verdict"),
        tag("p", where, class_="where"),
        class_="headline",
    )


def _sentence(holes: Holes) -> Markup:
    """What is lost, and where most of it is."""
    whole = join("The understudy loses ", tag("strong", figure(holes.delta_loss)), " per place")
    most = max(
        (s for s in holes.sites if isinstance(s.alone, Measured)),
        key=lambda s: s.alone.value if isinstance(s.alone, Measured) else 0.0,
        default=None,
    )
    if most is None or len(holes.sites) < 2:
        return join(whole, ".")
    return join(whole, "; alone, most at ", tag("strong", most.name), ", ", figure(most.alone), ".")
