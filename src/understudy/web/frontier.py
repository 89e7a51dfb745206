"""The frontier of `understudy ablate` as one page that needs nothing else."""

from collections.abc import Mapping, Sequence

from understudy.core.records.frontier import FORMS, WHAT, AtL0, Frontier, Point
from understudy.core.records.metric import Measured
from understudy.web.charts import Line, legend, line_chart
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import figure, number, percent
from understudy.web.page import document
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, table

WINDOW = 2.5
"""The picture reaches from the lowest L0 compared over this to the highest times this; the table holds every run."""
VERDICTS = {
    "best": ("lowest", "good"),
    "worse": ("worse", "bad"),
    "undecided": ("not told apart", "open"),
    "not measured": ("not measured", "open"),
}


def render(card: Frontier) -> str:
    """The page for `card`. Every text in it is escaped."""
    forms = [form for form in FORMS if any(isinstance(a.value, Measured) for a in card.at if a.form == form)]
    parts = [_form(card, form) for form in forms]
    return document(
        f"Sparsity rules at {card.site} of {card.network}",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "Frontier ", tag("span", f"{card.site} of {card.network}"), class_="kicker"),
            tag("h1", "Sparsity rules at equal L0", id="verdict"),
            tag("p", _where(card), class_="where"),
            class_="headline",
        ),
        tag("main", *parts, _rates(card), _runs(card), _how(card), id="main"),
    )


def _where(card: Frontier) -> str:
    return (
        f"{card.kind}, {card.n_latents:,} latents, {card.places:,} places of training each, {card.seeds} "
        f"seed{'s' if card.seeds != 1 else ''}; {card.sequences} sequences of {card.data}, intervals are 95%, over "
        f"{card.units} documents."
    )


def _form(card: Frontier, form: str) -> Markup:
    looks = {rule: f"c{i % 6}" for i, rule in enumerate(card.rules)}
    body: list[Child] = [legend(list(looks.items()))]
    for what, name in WHAT.items():
        body += [_chart(card, form, what, name, looks), _table(card, form, what, name)]
        body.append(tag("ul", *(tag("li", line) for line in card.sentences(form, what)), class_="notes"))
    lead = f"Dictionaries {FORMS[form]}. Marks are runs, at the L0 they measured; bars are 95% intervals."
    return section(form, "As they are used" if form == "thresholds" else "As they were trained", *body, lead=lead)


def _chart(card: Frontier, form: str, what: str, name: str, looks: Mapping[str, str]) -> Markup | None:
    lines = [
        Line(rule, [(x, m.value) for x, m in found], looks[rule], [(m.low, m.high) for _, m in found], dots=True)
        for rule in card.rules
        for seed in sorted({p.seed for p in card.points})
        if (found := [p for p in _places(card.points, form, what, rule, seed) if _shown(card, p[0])])
    ]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ends = [end for line in lines for bar in line.bars for end in bar]
    low = min([e for e in ends if e > 0] or [1e-3])
    x = Scale(min(xs) / 1.1, max(xs) * 1.1, "log")
    y = Scale(low / 1.1, max(ends) * 1.1, "log") if max(ends) > 4 * low else spanning(ends)
    said = "; ".join(f"{a.rule} at {a.l0:g}: {a.value}" for a in card.at if (a.form, a.what) == (form, what))
    caption = tag("figcaption", name.capitalize(), " ", tag("span", "by L0", class_="soft"))
    return tag("figure", caption, line_chart(lines, x, y, said, height=280), class_="chart")


def _shown(card: Frontier, l0: float) -> bool:
    return min(card.l0s) / WINDOW <= l0 <= max(card.l0s) * WINDOW


def _places(points: Sequence[Point], form: str, what: str, rule: str, seed: int) -> list[tuple[float, Measured]]:
    """(measured L0, figure) of one rule and seed; a rule with one form stands for itself in the other."""
    own = [p for p in points if (p.rule, p.seed) == (rule, seed)]
    in_form = [p for p in own if p.form == form] or [p for p in own if p.form == "thresholds"]
    found = [(p.l0, getattr(p, what)) for p in in_form]
    return sorted(
        ((x.value, m) for x, m in found if isinstance(x, Measured) and isinstance(m, Measured)),
        key=lambda pair: pair[0],
    )


def _table(card: Frontier, form: str, what: str, name: str) -> Markup:
    rows = [_row(a) for l0 in card.l0s for a in card.rows(form, what, l0)]
    head = ["L0", "rule", name, "above the lowest", ""]
    return table(f"{name.capitalize()} at equal L0", head, rows, words=2)


def _row(a: AtL0) -> list[Child]:
    said, look = VERDICTS[a.verdict]
    beyond = (
        figure(a.beyond_best, sign=True, unit=False, with_percent=False) if a.verdict in ("worse", "undecided") else ""
    )
    return [
        f"{a.l0:g}", a.rule, figure(a.value, unit=False, with_percent=False), beyond,
        tag("span", said, class_=f"verdict {look}"),
    ]  # fmt: skip


def _rates(card: Frontier) -> Markup | None:
    if not card.rates:
        return None
    factors = sorted({float(f) for r in card.rates for f in r.losses})
    rows = [
        [r.rule, *(_loss(r.losses.get(f"{f:g}")) for f in factors), f"{r.factor:g}" + (" (edge)" if r.is_edge else "")]
        for r in card.rates
    ]
    head = ["rule", *(f"x {f:g}" for f in factors), "used"]
    lead = (
        "The loss each rule trains on, penalties included, at multiples of the recipe's learning rate, on sequences "
        "that no other figure rests on; one seed, the middle level."
    )
    return section("rates", "Learning rates", table("Loss by learning rate", head, rows), lead=lead)


def _loss(value: float | None) -> Child:
    return "" if value is None else number(value, 4)


def _runs(card: Frontier) -> Markup:
    rows = [
        [p.run, p.form, f"{p.level:.3g}", figure(p.l0, unit=False), figure(p.fvu, with_percent=False, unit=False),
         figure(p.delta_loss, sign=True, unit=False), percent(p.dead)]
        for p in sorted(card.points, key=lambda p: (p.form != "thresholds", card.rules.index(p.rule), p.seed, p.level))
    ]  # fmt: skip
    head = ["run", "form", "asked", "L0", "FVU", "excess loss", "dead"]
    return section("runs", "Every run", table("Runs", head, rows, words=2))


def _how(card: Frontier) -> Markup:
    notes: list[Child] = [
        "A rule's figure at an L0 lies on the chord between its two runs around that measured L0, in logarithms; "
        "never at an L0 that was only asked for.",
        join("A chord over twice that span misses the run in between by at most ", figure(card.chord), " of its FVU."),
        "Worse: the paired interval excludes 0 and every seed agrees. The lowest is chosen on the same documents.",
        *card.notes,
    ]
    return section("how", "How", tag("ul", *(tag("li", note) for note in notes), class_="notes"))
