"""The features, by layer: one line each to skim, contexts and outputs inside. Readable without a script."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from understudy.core.records.scorecard import Claim, Context, Feature, Image, Report
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.names import layer_names
from understudy.web.numerals import number, percent, plain
from understudy.web.pictures import album, tile
from understudy.web.tables import section
from understudy.web.tokens import run_of_tokens, snippet, visible

BANDS = ("top", "90-99%", "50-90%", "0-50%")
STRIP = 6
"""Pictures in the line of a feature."""


def features(report: Report) -> Markup | None:
    """A search box, then a list per dictionary; only the first list is open. Of a policy that reads numbers, that there
    is nothing to show them on."""
    if not any(report.features.values()):
        why = tag("p", "not shown: what it reads is numbers, neither text nor pictures.", class_="missing")
        return section("features", "Features", why) if report.scorecard.acting.episodes else None
    names = layer_names([*(row.site for row in report.scorecard.dictionaries), *report.features])
    layers = [
        _layer(site, names[site], found, report.images, i == 0)
        for i, (site, found) in enumerate(report.features.items())
        if found
    ]
    total = sum(map(len, report.features.values()))
    shade = term("activation", "shade")
    lead = (
        join(
            f"{total:,} latents with the pictures they answer to. The deeper the ",
            shade,
            ", the stronger; the outlined place is the one the picture was chosen for. Under it are the activation "
            "there and the class.",
        )
        if report.images
        else join(
            f"{total:,} latents with the text they answer to. The deeper the ",
            shade,
            ", the stronger; the outlined token is the one the context was chosen for. Newlines show as ↵, tabs as ⇥, "
            "runs of spaces as dots.",
        )
    )
    if files := list(dict.fromkeys(c.file for found in report.features.values() for f in found for c in f.claims)):
        named = join(*((", " if i else "", tag("code", visible(file, False))) for i, file in enumerate(files[:3])))
        more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
        lead = join(lead, " Texts after “claimed” were written by others (", named, more, "). Nothing here tests them.")
    controls = _controls(total, bool(report.images))
    return section("features", "Features", album(report.images), controls, *layers, lead=lead)


def _controls(total: int, pictured: bool) -> Markup:
    """Shown only where the script runs."""
    hint = "a class, D0-12 …" if pictured else "return, L0-12, def …"
    where = "Find in classes and numbers" if pictured else "Find in contexts, outputs and numbers"
    search = tag("input", type="search", id="filter", placeholder=hint, autocomplete="off")
    orders = (("", "as listed"), ("density", "density"), ("maximum", "maximum"), ("latent", "number"))
    options = [tag("option", label, value=value) for value, label in orders]
    return tag(
        "div",
        tag("label", tag("span", where), search),
        tag("label", tag("span", "Sort by"), tag("select", *options, id="sort")),
        tag("p", f"{total:,} features", id="found", role="status", aria_live="polite"),
        class_="controls",
        id="controls",
        hidden=True,
    )


def _layer(site: str, name: str, found: Sequence[Feature], images: Sequence[Image], is_open: bool) -> Markup:
    title = tag("h3", name, " ", tag("code", site), tag("span", f" {len(found):,} features", class_="soft"))
    columns = tag(
        "div",
        tag("span", "latent"),
        tag("span", "strongest pictures" if images else "strongest context"),
        tag("span", term("density"), class_="num"),
        tag("span", term("activation", "Maximum"), class_="num"),
        class_="feature-head",
    )
    rows = tag("div", *(_feature(f, name, images) for f in found), class_="feature-list")
    return tag("details", tag("summary", title), columns, rows, class_="layer", id=f"features-{name}", open=is_open)


def _feature(feature: Feature, layer: str, images: Sequence[Image]) -> Markup:
    line = tag(
        "summary",
        tag("span", f"{layer}-{feature.latent}", class_="feature-name"),
        tag("span", _strongest(feature, images), class_="snippet"),
        tag("span", percent(feature.density), class_="num density"),
        tag("span", plain(feature.maximum), class_="num maximum"),
        tag("span", "claimed: ", tag("bdi", visible(feature.claims[0].text)), class_="claim")
        if feature.claims
        else None,
    )
    # The anchor is inside, so that a browser without the script opens the feature for a link to it.
    anchor = tag("div", *_inside(feature, layer, images), class_="feature-body", id=f"{layer}-{feature.latent}")
    data = {"data_density": feature.density, "data_maximum": feature.maximum, "data_latent": feature.latent}
    return tag("details", line, anchor, class_="feature", **data)


def _strongest(feature: Feature, images: Sequence[Image]) -> Markup | str:
    """What the list shows of a feature: its strongest context, or the pictures that it is strongest on."""
    if not feature.contexts:
        return "no context"
    if feature.contexts[0].picture is None:
        return snippet(feature.contexts[0], feature.maximum)
    return tag("span", *(tile(c, images, feature.maximum, True) for c in feature.contexts[:STRIP]), class_="strip")


def _inside(feature: Feature, layer: str, images: Sequence[Image]) -> Iterator[Markup]:
    yield tag("p", tag("a", f"#{layer}-{feature.latent}", href=f"#{layer}-{feature.latent}"), class_="soft anchor")
    if feature.claims:
        heading = tag("h4", term("claim", "Claimed by others, not measured here"))
        yield tag("div", heading, tag("ul", *map(_claim, feature.claims)), class_="claims")
    if feature.raises or feature.lowers:
        yield tag(
            "div",
            _outputs(term("outputs", "Raises"), feature.raises, "up"),
            _outputs("Lowers", feature.lowers, "down"),
            class_="outputs",
        )
    if feature.classes:
        label = term("classes", "Share of its activation, by class")
        yield tag("div", tag("h4", label), tag("ul", *map(_class, feature.classes), class_="chips outputs"))
    bands = [
        (tag("h4", term("band", _band_name(band)), class_="band"), list(contexts))
        for band, contexts in groupby(sorted(feature.contexts, key=_band_order), key=lambda c: c.band)
    ]
    if images:
        shelves = [
            tag("div", name, tag("ol", *_tiles(found, feature, images), class_="tiles")) for name, found in bands
        ]
        yield tag("div", *shelves, class_="shelves")
        return
    for name, found in bands:
        yield name
        yield tag("ol", *(_context(c, feature.maximum) for c in found), class_="contexts")


def _tiles(contexts: Sequence[Context], feature: Feature, images: Sequence[Image]) -> list[Markup]:
    return [tag("li", tile(c, images, feature.maximum)) for c in contexts]


def _class(share: tuple[str, float]) -> Markup:
    return tag("li", tag("bdi", visible(share[0], False)), " ", tag("span", percent(share[1]), class_="by"))


def _claim(claim: Claim) -> Markup:
    by = ", ".join(filter(None, (claim.explainer, claim.method))) or "by whom, the file does not say"
    where = tag("span", visible(f"{by} · {claim.source} · {claim.file}", False), class_="soft")
    return tag("li", tag("bdi", visible(claim.text, False)), " ", where)


def _band_order(context: Context) -> tuple[int, str]:
    known = context.band in BANDS
    return (BANDS.index(context.band) if known else len(BANDS), "" if known else context.band)


def _band_name(band: str) -> str:
    return band if band == "top" or not band.endswith("%") else f"{band} of the range".replace("-", "–")


def _context(context: Context, maximum: float) -> Markup:
    has_peak = 0 <= context.peak < len(context.tokens)
    at = plain(context.tokens[context.peak].activation) if has_peak else ""
    text = tag("bdi", run_of_tokens(context.tokens, context.peak, maximum), dir="ltr", class_="text")
    return tag("li", tag("span", at, class_="at"), text)


def _outputs(label: Markup | str, pairs: Sequence[tuple[str, float]], look: str) -> Markup | None:
    if not pairs:
        return None
    items = [
        tag("li", tag("bdi", visible(text)), " ", tag("span", number(by, 2, sign=True), class_="by"))
        for text, by in pairs
    ]
    return tag("div", tag("h4", label), tag("ul", *items, class_="chips outputs"), class_=look)
