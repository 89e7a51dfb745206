"""Which conclusions carry over, as one page that needs nothing else."""

from understudy.core.records.metric import Measured
from understudy.core.records.transfer import ArmFigure, ClaimCard, Row, Transfer
from understudy.web.charts import Dot, dot_chart
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import figure
from understudy.web.page import document
from understudy.web.scales import spanning
from understudy.web.tables import section, span, table

LOOKS = {
    "holds": "good", "does not": "bad", "control failed": "bad", "control too wide": "open",
    "nothing to remove": "open", "not told apart": "open", "not measured": "open",
}  # fmt: skip


def render(made: Transfer) -> str:
    """The page for `made`. Every text in it is escaped."""
    where = (
        f"SAEs of {made.width:g} x the site's width, {made.places:,} places of training each, {made.seeds} "
        f"seed{'s' if made.seeds != 1 else ''}, compared at a measured L0 of {made.l0:g}; intervals are 95%, over "
        "documents, episodes or images."
    )
    return document(
        "Which conclusions carry over",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "Transfer ", tag("span", ", ".join(dict.fromkeys(r.network for r in made.rows))), class_="kicker"),
            tag("h1", "Which conclusions carry over", id="verdict"),
            tag("p", where, class_="where"),
            class_="headline",
        ),
        tag("main", *(_claim(c, made.of(c.name)) for c in made.claims), id="main"),
    )


def _claim(card: ClaimCard, rows: list[Row]) -> Markup:
    body = [_picture(card, rows), _table(card, rows)]
    notes = [f"{row.network}: {note}" for row in rows for note in row.said]
    how = [f"{card.defect.capitalize()}: {card.definition}.", f"Control: {card.control}.", f"{card.source}.", *notes]
    body.append(tag("ul", *(tag("li", line) for line in how), class_="notes"))
    on = {verdict: [r.network for r in rows if r.verdict == verdict] for verdict in LOOKS}
    lead = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in on.items() if names) + "."
    return section(card.name, card.sentence, *body, lead=lead)


def _picture(card: ClaimCard, rows: list[Row]) -> Markup | None:
    """A row for each network and arm."""
    dots = [_dot(row, arm, i) for row in rows for i, arm in enumerate(row.arms)]
    ends = [
        e for row in rows for a in row.arms if isinstance(a.defect, Measured) for e in (a.defect.low, a.defect.high)
    ]
    if not ends:
        return None
    return dot_chart(dots, spanning([0.0, *ends]), card.defect.capitalize(), f"{card.unit}, 0 is none")


def _dot(row: Row, arm: ArmFigure, place: int) -> Dot:
    value, low, high = span(arm.defect)
    look = ("ablation", "ours")[place] if place < 2 else "rival"
    name = join(row.network, " ", tag("span", arm.arm, class_="soft"))
    return Dot(name, figure(arm.defect, unit=False, with_percent=False), value, low, high, look)  # pyright: ignore


def _table(card: ClaimCard, rows: list[Row]) -> Markup:
    """Verdicts and what they rest on; the figures of the arms are in the picture."""
    head = ["network", "verdict", "share removed", *(f"control: {a}" for a in card.arms[:2])]
    cells = []
    for row in rows:
        verdict = tag("span", row.verdict, class_=f"verdict {LOOKS[row.verdict]}")
        figures = [row.removed, *(a.control for a in row.arms[:2])]
        where = join(row.network, " ", tag("span", row.site, class_="soft"))
        cells.append([where, verdict, *(figure(m, with_percent=False, unit=False) for m in figures)])
    return table("What the verdicts rest on", head, cells, words=2)
