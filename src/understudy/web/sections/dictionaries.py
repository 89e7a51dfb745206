"""Each dictionary by itself: a card with its local figures and the histogram of densities."""

from understudy.core.records.scorecard import DictionaryRow, Scorecard
from understudy.web.charts import histogram
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.names import layer_names
from understudy.web.numerals import figure
from understudy.web.tables import section


def dictionaries(card: Scorecard) -> Markup | None:
    """Small multiples, one per dictionary, drawn alike so that they can be compared at a glance."""
    if not card.dictionaries:
        return None
    names = layer_names([row.site for row in card.dictionaries])
    cards = [_card(row, names[row.site]) for row in card.dictionaries]
    lead = "Local figures, on the network's own activations: what each dictionary misses before errors add up."
    return section("dictionaries", "Dictionaries", tag("div", *cards, class_="cards"), lead=lead)


def _card(row: DictionaryRow, name: str) -> Markup:
    figures = [
        (term("fvu"), figure(row.fvu, with_percent=False, unit=False)),
        (term("l0"), figure(row.l0, unit=False)),
        (term("dead", "Dead"), figure(row.dead)),
        (term("shrinkage"), figure(row.shrinkage, with_percent=False, unit=False)),
    ]
    return tag(
        "article",
        tag("h3", name, " ", tag("code", row.site)),
        tag("p", f"{row.kind}, {row.n_latents:,} latents", class_="soft"),
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in figures), class_="figures"),
        _densities(row),
        class_="card",
    )


def _densities(row: DictionaryRow) -> Markup:
    if not row.density or len(row.density_edges) != len(row.density) + 1:
        return tag("p", tag("span", "not measured: no histogram of densities", class_="missing"))
    edges, counts = row.density_edges, row.density
    most = max(range(len(counts)), key=counts.__getitem__)
    said = (
        f"{sum(counts):,} live latents by density, 10^{edges[0]:g} to 10^{edges[-1]:g} of places; "
        f"most lie between 10^{edges[most]:g} and 10^{edges[most + 1]:g}"
    )
    caption = tag("figcaption", join(term("density", "Density"), " of live latents, share of places"), class_="soft")
    return tag("figure", histogram(counts, edges, said), caption)
