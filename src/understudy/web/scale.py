"""The laws of `understudy scale` as one page that needs nothing else."""

from collections.abc import Sequence

from understudy.core.records.metric import Measured, Metric
from understudy.core.records.scale import NAMES, BestRate, ScaleCard
from understudy.web.charts import Line, legend, line_chart
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import count, figure, plain
from understudy.web.page import document
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, table


def render(card: ScaleCard) -> str:
    """The page for `card`. Every text in it is escaped."""
    where = (
        f"{card.rule}, {card.kind}, {card.places:,} places of training each, {card.seeds} "
        f"seed{'s' if card.seeds != 1 else ''}; {card.sequences} sequences of {card.data}, intervals are 95%, over "
        f"{card.units} documents."
    )
    return document(
        f"Scaling at {card.site} of {card.network}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "Scaling ", tag("span", f"{card.site} of {card.network}"), class_="kicker"),
            tag("h1", "FVU by width and L0, and the next width", id="verdict"),
            tag("p", card.verdict[0].upper() + card.verdict[1:] + ".", class_="against"),
            tag("p", where, class_="where"),
            class_="headline",
        ),
        tag("main", _grid(card), _law(card), _rates(card), _how(card), id="main"),
    )


def _grid(card: ScaleCard) -> Markup:
    ks = sorted({c.k for c in card.grid})
    looks = {k: f"c{i % 5}" for i, k in enumerate(ks)}
    lines = []
    for k in ks:
        grid = [(float(c.n_latents), c.fvu) for c in card.grid if c.k == k]
        ahead = [(float(p.n_latents), p.measured) for p in card.predictions if p.k == k]
        foretold = [(float(p.n_latents), p.predicted) for p in card.predictions if p.k == k]
        lines += [_line(f"k = {k}", grid + ahead, looks[k]), _line("predicted", grid[-1:] + foretold, "c5")]
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ends = [end for line in lines for bar in line.bars for end in bar]
    widths = sorted({(x, count(x)) for x in xs})
    said = "; ".join(f"{c.n_latents} latents, k {c.k}: {c.fvu}" for c in card.grid)
    x, y = Scale(min(xs) / 1.1, max(xs) * 1.1, "log"), spanning(ends)
    keys = legend([*((f"k = {k}", look) for k, look in looks.items()), ("predicted", "c5")])
    caption = tag("figcaption", "FVU ", tag("span", "by latents", class_="soft"))
    chart = tag("figure", caption, line_chart(lines, x, y, said, widths, height=280), class_="chart")
    rows = [
        [f"{c.n_latents:,}", f"{c.k}", plain(c.lr), _plain(c.l0), _plain(c.fvu), figure(c.left_out, sign=True)]
        for c in card.grid
    ]
    ahead_rows = [
        [f"{p.n_latents:,}", f"{p.k}", plain(p.lr), _plain(p.l0), _plain(p.predicted), _plain(p.measured),
         figure(p.off, sign=True)]
        for p in card.predictions
    ]  # fmt: skip
    lead = "The last width was predicted from the others before it was trained. Bars are 95% intervals over documents."
    head = ["latents", "k", "learning rate", "L0", "FVU"]
    tables = [
        table("The next width", [*head[:4], "predicted", "measured", "measured over predicted"], ahead_rows),
        table("The grid", [*head, "law without it, over it"], rows),
    ]
    return section("grid", "FVU by width", keys, chart, *tables, lead=lead)


def _line(name: str, found: Sequence[tuple[float, Metric]], look: str) -> Line:
    known = [(x, m) for x, m in found if isinstance(m, Measured)]
    return Line(name, [(x, m.value) for x, m in known], look, [(m.low, m.high) for _, m in known], dots=True)


def _plain(metric: Metric) -> Markup:
    return figure(metric, unit=False, with_percent=False)


def _law(card: ScaleCard) -> Markup:
    k0, n0 = card.middle
    text = f"FVU = exp(a) (L0 / {k0:.3g})^(b_k + g ln(n / {n0:.4g})) (n / {n0:.4g})^b_n"
    rows = [[name, _plain(card.law[name]), NAMES[name]] for name in NAMES]
    head = ["parameter", "value", "what it is"]
    missed = tag(
        "p", "Fitted without one run at a time, the law misses that run by at most ", figure(card.left_out), "."
    )
    return section("law", "The law", table("Parameters", head, rows), missed, lead=tag("code", text))


def _rates(card: ScaleCard) -> Markup:
    rows = [[f"{r.n_latents:,}", _tried(r), figure(r.best, unit=False)] for r in card.rates]
    said = join(
        "Exponent of n: ", figure(card.rate_slope, unit=False), ". Predicted for the next width: ",
        figure(card.next_rate, unit=False), "; measured there: ", figure(card.next_rate_measured, unit=False), ".",
    )  # fmt: skip
    head = ["latents", "FVU at each rate tried", "best rate"]
    return section("rates", "Learning rate by width", table("Best learning rates", head, rows, words=2), tag("p", said))


def _tried(rate: BestRate) -> Child:
    return ", ".join(f"{lr}: {m.value:.4f}" for lr, m in rate.fvu.items() if isinstance(m, Measured))


def _how(card: ScaleCard) -> Markup:
    notes = [
        "Every run has the same number of places, so wide dictionaries are further from their best than narrow ones.",
        "The law is fitted on measured L0. Intervals resample documents: what training again would change is not in "
        "them.",
        "The best rate is the lowest point of the parabola, in the logarithm of the rate, through the best rate tried "
        "and its neighbours.",
        *card.notes,
    ]
    return section("how", "How", tag("ul", *(tag("li", note) for note in notes), class_="notes"))
