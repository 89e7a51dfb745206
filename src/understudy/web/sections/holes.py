"""Where the lost nats are: sites, errors, parts of the places, and the worst of the text."""

from collections.abc import Iterable, Sequence

from understudy.core.records.holes import EVERYWHERE, Cell, Holes, LostToken, WorstPlace, WorstSequence
from understudy.core.records.metric import Measured, Metric
from understudy.core.records.scorecard import Token
from understudy.web.charts import Dot, dot_chart
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import figure, number, percent, plain
from understudy.web.scales import Scale, spanning
from understudy.web.tables import section, span, table
from understudy.web.tokens import run_of_tokens, visible


def sites(holes: Holes) -> Markup:
    """What each site costs alone and last, and how much of it goes when a part of the error is put back."""
    lead = (
        "One site replaced at a time, on the same places. Alone: nothing else is replaced. Last: what replacing it "
        "adds once all others are. Interaction is the loss of all at once minus the sum of the sites alone: above 0 "
        "the errors feed on each other."
    )
    rows: list[tuple[str, Metric, str]] = [(f"{s.name}, alone", s.alone, "part") for s in holes.sites]
    rows += [("sum of the sites", holes.sum_alone, "rival"), ("interaction", holes.interaction, "rival")]
    rows.append((EVERYWHERE, holes.delta_loss, "ours"))
    dots = [Dot(join(name), figure(m, sign=True, unit=False), *span(m), look=look) for name, m, look in rows]  # pyright: ignore
    chart = dot_chart(dots, _scale(m for _, m, _ in rows), "Excess loss by site", "nats per place, 95% intervals")
    ranks = [r.rank for r in holes.returned]
    head = ("site", "alone, nats", "last, nats", *(f"error’s top {r} back" for r in ranks))
    body: list[tuple[Child, ...]] = [
        (
            s.name,
            *(figure(m, sign=True, unit=False) for m in (s.alone, s.last)),
            *(figure(r.recovered) for r in s.returned),
        )
        for s in holes.sites
    ]
    body.append(
        (tag("strong", EVERYWHERE), figure(holes.delta_loss, sign=True, unit=False), "",
         *(figure(r.recovered) for r in holes.returned))
    )  # fmt: skip
    note = tag(
        "p",
        "Error’s top r back: the share of the excess loss that goes when the part of the error in its first r "
        "directions, measured on a clean pass, is put back. It reads the network’s own activations: an analysis, not "
        "evidence of understanding.",
        class_="notes",
    )
    return section("sites", "By site", chart, table("Sites alone and last", head, body), note, lead=lead)


def errors(holes: Holes) -> Markup:
    """How low-rank and how predictable each error is."""
    lead = (
        f"The error is what a dictionary misses on the network’s own activations. Directions and linear maps are "
        f"fitted on {holes.fit_rows:,} rows of training text and measured on held-out text. An error without direction "
        "would have the share in brackets; a map fitted to shuffled inputs must predict nothing, but for its own noise."
    )
    ranks = [r.rank for r in holes.returned]
    rows = []
    for error in (e for s in holes.sites for e in s.errors):
        within = {
            d.rank: join(figure(d.share), " ", tag("span", f"({percent(d.chance)})", class_="soft"))
            for d in error.directions
        }
        shown = [within.get(rank, "") for rank in ranks]
        rows.append((error.name, f"{error.width:,}", *shown, figure(error.predictable), figure(error.control)))
    head = ("site", "width", *(f"in top {r}" for r in ranks), "linear in the input, R²", "shuffled control, R²")
    return section(
        "errors", "The error", table("Share of the squared error, and what foretells it", head, rows), lead=lead
    )


def parts(holes: Holes) -> Markup | None:
    """Site x slice, site x position, and the largest of site x slice x position."""
    if not holes.by_slice and not holes.by_position:
        return None
    lead = (
        "What a part of the places adds to the excess loss of the whole: its share of places times its own excess. "
        "Parts of one row add up to the site’s excess, if every place has a label."
    )
    body = [_by_slice(holes) if holes.by_slice else None]
    if holes.by_position:
        body += [tag("h3", "Site and position"), _matrix("Nats added, by position", holes.by_position, _range)]
    if holes.cells:
        body += [tag("h3", "Site, slice and position"), _largest(holes)]
    few = [tag("p", *_concentration(c.places, c.of_excess)) for c in holes.concentration]
    return section("parts", "By slice and position", *body, *few, lead=lead)


def worst(holes: Holes) -> Markup | None:
    """The places and sequences that lose most. They were chosen for it, so their figures estimate nothing else."""
    if not holes.worst_places and not holes.worst_sequences:
        return None
    lead = (
        "Chosen because they lose most, so their figures carry no interval and estimate nothing else. Shaded: nats "
        "lost in predicting that token from what stands before it, darkest for the worst of its sequence."
    )
    rows = [_place(p) for p in holes.worst_places]
    head = ("text before, and the token", "lost, nats", "network’s loss, nats", "position", "slices")
    places = table("The worst places", head, rows) if rows else None
    texts = [_sequence(i, s) for i, s in enumerate(holes.worst_sequences)]
    return section("worst", "The worst text", places, tag("h3", "The worst sequences"), *texts, lead=lead)


def _by_slice(holes: Holes) -> Markup:
    own = sorted((c for c in holes.by_slice if c.arm == EVERYWHERE), key=lambda c: -(span(c.adds)[0] or 0.0))
    dots = [
        Dot(join(c.slice, " ", tag("small", percent(c.share), class_="soft")),
            figure(c.delta_loss, sign=True, unit=False), *span(c.delta_loss), look="part")
        for c in own
    ]  # fmt: skip
    chart = dot_chart(
        dots, _scale(c.delta_loss for c in own), "Excess loss by slice, all at once", "nats per place of the slice"
    )
    return join(chart, tag("h3", "Site and slice"), _matrix("Nats added, by slice", holes.by_slice, lambda c: c.slice))


def _matrix(caption: str, cells: Sequence[Cell], named) -> Markup:
    """Rows are parts, largest of all sites at once first; columns are sites."""
    arms = list(dict.fromkeys(c.arm for c in cells))
    names = list(dict.fromkeys(named(c) for c in cells))
    at = {(c.arm, named(c)): c for c in cells}
    if cells[0].first is None:
        names.sort(key=lambda name: -(span(at[arms[0], name].adds)[0] or 0.0))
    rows = [
        (name, percent(at[arms[0], name].share), *(figure(at[arm, name].adds, sign=True, unit=False) for arm in arms))
        for name in names
    ]
    return table(caption, ("part", "share of places", *arms), rows)


def _largest(holes: Holes) -> Markup:
    rows = [
        (c.arm, c.slice, _range(c), percent(c.share), figure(c.delta_loss, sign=True, unit=False),
         figure(c.adds, sign=True, unit=False))
        for c in holes.cells
    ]  # fmt: skip
    head = ("site", "slice", "positions", "share of places", "excess, nats", "adds, nats")
    return table(f"The parts that add most, of {holes.n_cells:,}", head, rows, words=3)


def _place(place: WorstPlace) -> tuple[Child, ...]:
    token = tag("b", visible(place.token.text), class_="a9", title=plain(place.token.lost))
    text = tag("bdi", visible(place.before[-60:], whole_token=False), token, dir="ltr", class_="text")
    slices = ", ".join(place.slices)
    return text, number(place.token.lost, 2, sign=True), number(place.token.clean, 2), f"{place.position:,}", slices


def _sequence(index: int, sequence: WorstSequence) -> Markup:
    head = join(
        tag("b", f"{number(sequence.delta_loss, 2, sign=True)} nats per place"),
        tag("span", f" over {sequence.places:,} places, held-out sequence {sequence.sequence:,}", class_="soft"),
    )
    maximum = max((t.lost for t in sequence.tokens), default=0.0)
    text = tag("bdi", run_of_tokens(list(_shaded(sequence.tokens)), -1, maximum), dir="ltr", class_="text")
    return tag("details", tag("summary", head), text, class_="more sample", open=index < 2)


def _shaded(tokens: Iterable[LostToken]) -> Iterable[Token]:
    """A token that lost nothing, or gained, stays plain."""
    return (Token(text=t.text, activation=max(0.0, t.lost)) for t in tokens)


def _range(cell: Cell) -> str:
    if cell.first is None or cell.last is None:
        return ""
    return f"{cell.first:,}" if cell.first == cell.last else f"{cell.first:,}–{cell.last:,}"


def _scale(metrics: Iterable[Metric]) -> Scale:
    ends = [end for m in metrics for end in span(m) if end is not None]
    return spanning(ends or [0.0, 1.0], zero=True)


def _concentration(places: float, lost: Metric) -> tuple[Child, ...]:
    above = isinstance(lost, Measured) and lost.value > 1
    rest = " of the net excess; over 100% because other places gain." if above else " of the net excess."
    return "The ", percent(places), " of places that lose most lose ", figure(lost), rest
