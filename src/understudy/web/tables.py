"""Sections, tables and the order of rivals: the nouns that several sections share."""

from collections.abc import Iterable, Mapping, Sequence

from understudy.core.records.metric import Measured, Metric
from understudy.core.records.scorecard import Rival
from understudy.web.markup import Child, Markup, join, tag

ABLATIONS = {
    "zero": "zero ablation",
    "mean": "mean ablation",
    "position_mean": "position-mean ablation",
    "resample": "resample ablation",
}


def section(key: str, title: str, *body: Child, lead: Child = None) -> Markup:
    """A part of the page with a heading that can be linked to."""
    heading = tag("h2", tag("a", title, href=f"#{key}"), id=f"{key}-title")
    intro = tag("p", lead, class_="lead") if lead is not None else None
    return tag("section", heading, intro, *body, id=key, aria_labelledby=f"{key}-title")


def table(caption: str, head: Sequence[Child], rows: Iterable[Sequence[Child]], words: int = 1) -> Markup:
    """A table whose first column heads its rows; the first `words` columns are text, the others figures."""
    head_cells = [tag("th", cell, scope="col", class_=None if i < words else "num") for i, cell in enumerate(head)]
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row")]
        cells += [tag("td", cell, class_=None if i < words else "num") for i, cell in enumerate(row[1:], start=1)]
        body.append(tag("tr", *cells))
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *head_cells)), tag("tbody", *body))
    # A wide table scrolls inside its own box, which the keyboard must be able to reach.
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def ablation_key(name: str) -> str | None:
    """`mean` for `mean`, `Mean-ablation`, `mean_ablation`; None for a true rival."""
    key = name.lower().replace("-", "_").replace(" ", "_").removesuffix("_ablation")
    return key if key in ABLATIONS else None


def rival_name(name: str) -> str:
    key = ablation_key(name)
    return ABLATIONS[key] if key else name.replace("_", " ")


def by_loss(rivals: Mapping[str, Rival]) -> list[tuple[str, Rival]]:
    """Best first; those without a figure last."""
    return sorted(rivals.items(), key=lambda item: sort_key(item[1].replacement.delta_loss))


def sort_key(metric: Metric) -> float:
    return metric.value if isinstance(metric, Measured) else float("inf")


def span(metric: Metric) -> tuple[float | None, float | None, float | None]:
    """(value, low, high), all None if not measured."""
    return (metric.value, metric.low, metric.high) if isinstance(metric, Measured) else (None, None, None)


def chips(words: Iterable[str], empty: str = "nothing") -> Markup:
    """Names as a line of small labels."""
    items = [tag("li", tag("code", word)) for word in words]
    return tag("ul", *items, class_="chips") if items else join(tag("p", empty, class_="soft"))
