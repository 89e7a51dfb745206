"""How much of each ablation's damage is avoided, and the n-gram yardstick."""

import re

from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.scorecard import Scorecard
from understudy.web.charts import Dot, Level, Line, dot_chart, line_chart
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import as_text, figure
from understudy.web.scales import Scale, spanning
from understudy.web.tables import ABLATIONS, section, span, table


def recovered(card: Scorecard) -> Markup:
    """Two charts side by side, and the shares as a table."""
    lead = join(
        "The share of an ablation’s damage that the understudy avoids, for four ablations on the same places. ",
        "One share alone can say anything: against zero ablation nearly everything looks recovered.",
    )
    return section(
        "recovered",
        "What is recovered",
        tag("div", _shares(card), _yardstick(card), class_="pair"),
        _table(card),
        lead=lead,
    )


def _shares(card: Scorecard) -> Markup:
    shares = [(key, getattr(card.replacement.recovered, key)) for key in ABLATIONS]
    shares.append(("top1", card.replacement.top1_agreement))
    dots = []
    for key, metric in shares:
        label = join("against ", term(key, ABLATIONS[key].removesuffix(" ablation"))) if key != "top1" else term("top1")
        look = "part" if key != "top1" else "clean"
        dots.append(Dot(label, figure(metric), *span(metric), look=look))
    ends = [end for _, metric in shares for end in span(metric) if end is not None]
    low = min([0.0, *ends])
    scale = Scale(low * 1.1, max([1.0, *ends]))
    return dot_chart(dots, scale, "Recovered, and top-1 agreement", "share; 1 is the network itself")


def _table(card: Scorecard) -> Markup:
    own = card.replacement
    rows = [
        (term("recovered", f"Recovered against {name}"), *_cells(getattr(own.recovered, key)))
        for key, name in ABLATIONS.items()
    ]
    rows += [
        (term("kl", "KL(network || understudy)"), *_cells(own.kl)),
        (term("top1"), *_cells(own.top1_agreement)),
        (term("ngram"), *_cells(own.equivalent_ngram)),
        (term("compute"), *_cells(own.equivalent_compute)),
    ]
    return table("How the network behaves with the understudy in place", ("figure", "value", "n"), rows)


def _cells(metric: object) -> tuple[Markup, str]:
    shown = figure(metric)  # pyright: ignore[reportArgumentType]
    return shown, f"{metric.n:,}" if isinstance(metric, Measured) else ""


def _yardstick(card: Scorecard) -> Markup:
    """Loss of n-gram models by order, with the understudy and the network as levels."""
    orders = sorted((_order(name, i), name) for i, name in enumerate(card.ngram_losses))
    known = [(order, card.ngram_losses[name]) for order, name in orders]
    points = [(float(order), m.value) for order, m in known if isinstance(m, Measured)]
    caption = tag("figcaption", "n-gram yardstick ", tag("span", "loss, nats per place, by order", class_="soft"))
    if not points:
        reasons = [m for m in (*(m for _, m in known), card.replacement.equivalent_ngram) if isinstance(m, NotMeasured)]
        why = reasons[0].not_measured if reasons else "no n-gram model was fitted"
        text = tag("p", tag("span", f"not measured: {why}", class_="missing"))
        return tag("figure", caption, text, class_="chart")
    bars = [(m.low, m.high) for _, m in known if isinstance(m, Measured)]
    own = card.replacement
    levels = [
        Level(name, m.value, look)
        for name, m, look in (("understudy", own.loss_replaced, "ours"), ("network", own.loss_clean, "clean"))
        if isinstance(m, Measured)
    ]
    y = spanning([v for _, v in points] + [level.value for level in levels], margin=0.12)
    xs = [x for x, _ in points]
    x = Scale(min(xs) - 0.4, max(xs) + 0.4)
    said = "; ".join(f"{x:g}-gram {v:.2f}" for x, v in points)
    lines = [Line("n-gram models", points, "s-plain", bars, dots=True)]
    names = [(v, f"{v:g}-gram") for v in xs]
    chart = line_chart(lines, x, y, f"Loss by order of n-gram: {said} nats.", names, levels, height=200)
    foot = tag("p", term("ngram"), ": ", _as_order(card), class_="soft")
    return tag("figure", caption, chart, foot, class_="chart")


def _as_order(card: Scorecard) -> Markup:
    metric = card.replacement.equivalent_ngram
    if not isinstance(metric, Measured):
        return figure(metric)
    value, interval, _ = as_text(metric)
    return join(f"{value} ", tag("span", interval, class_="interval"))


def _order(name: str, index: int) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else index + 1
