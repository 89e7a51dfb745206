"""Holes as text, at most 100 columns wide."""

from understudy.core.records.holes import EVERYWHERE, Cell, Holes
from understudy.core.records.metric import Measured, Metric
from understudy.core.records.summary import figure, table

MOST_ROWS = 12


def text(holes: Holes) -> str:
    """Sites, errors, slices and positions, the worst parts and places."""
    parts = [_head(holes), _sites(holes), _errors(holes), _parts(holes), _cells(holes), _places(holes)]
    return "\n\n".join(p for p in parts if p)


def _head(h: Holes) -> str:
    over = f"{h.units} documents" if h.units < h.sequences else "sequences"
    rows: list[tuple[str, Metric]] = [
        ("loss of the network", h.loss_clean),
        ("delta loss, all sites at once", h.delta_loss),
        ("sum of the sites, each alone", h.sum_alone),
        ("interaction", h.interaction),
    ]
    lines = [
        f"Where {h.run} loses its nats, on {h.data}",
        f"{h.sequences} sequences, {h.places:,} scored places; intervals are 95%, over {over}",
        "",
        *(f"{name:<32}{figure(m)} nats" if isinstance(m, Measured) else f"{name:<32}{figure(m)}" for name, m in rows),
        f"{'':<32}{_said(h)}",
    ]
    return "\n".join(lines).rstrip()


def _said(h: Holes) -> str:
    """What the interaction says in words, where its interval excludes 0."""
    if len(h.sites) < 2 or not isinstance(h.interaction, Measured):
        return ""
    if h.interaction.low > 0:
        return "the errors feed on each other: together they cost more than apart"
    if h.interaction.high < 0:
        return "the errors overlap: together they cost less than apart"
    return "together they cost about what they cost apart"


def _sites(h: Holes) -> str:
    rows = [[s.name, figure(s.alone), figure(s.last), *(_percent(r.recovered) for r in s.returned)] for s in h.sites]
    rows.append([EVERYWHERE, figure(h.delta_loss), "", *(_percent(r.recovered) for r in h.returned)])
    head = ["nats lost", "replaced alone", "replaced last", *(f"top {r.rank} back" for r in h.returned)]
    note = "top r back: share of the loss that goes when the error's first r directions are put back (an analysis)"
    return f"{table(head, rows)}\n{note}"


def _errors(h: Holes) -> str:
    errors = [e for s in h.sites for e in s.errors]
    ranks = [r.rank for r in h.returned]
    rows = []
    for e in errors:
        shares = {d.rank: f"{_percent(d.share, False)} ({d.chance:.0%})" for d in e.directions}
        rows.append([e.name, *(shares.get(r, "") for r in ranks), _percent(e.predictable), _percent(e.control)])
    head = ["the error", *(f"in top {r}" for r in ranks), "linear in input", "shuffled"]
    note = "in top r: share of the squared error (chance); linear in input: R2 on held-out rows, and its control"
    return f"{table(head, rows)}\n{note}"


def _parts(h: Holes) -> str:
    own = [c for c in h.by_slice if c.arm == EVERYWHERE]
    own = sorted(own, key=lambda c: -_value(c.adds))[:MOST_ROWS]
    along = [c for c in h.by_position if c.arm == EVERYWHERE]
    rows = [[c.slice, f"{c.share:.1%}", figure(c.delta_loss), figure(c.adds)] for c in own]
    rows += [[_range(c), f"{c.share:.1%}", figure(c.delta_loss), figure(c.adds)] for c in along]
    return table(["all at once, by part", "share of places", "delta loss", "adds"], rows) if rows else ""


def _cells(h: Holes) -> str:
    rows = [
        [f"{c.arm}, {c.slice}, {_range(c)}", f"{c.share:.1%}", figure(c.delta_loss), figure(c.adds)]
        for c in h.cells[:MOST_ROWS]
    ]
    return table([f"largest of {h.n_cells} parts", "share of places", "delta loss", "adds"], rows) if rows else ""


def _places(h: Holes) -> str:
    lines = [
        f"the {c.places:.0%} of places that lose most lose {_percent(c.of_excess)} of the net excess"
        for c in h.concentration
    ]
    if h.worst_places:
        lines += ["", "worst places (nats lost; the network's own loss; text before >>> token)"]
    lines += [
        f"  {p.token.lost:6.2f}  {p.token.clean:5.2f}  {_tail(p.before)} >>> {p.token.text!r}"
        for p in h.worst_places[:8]
    ]
    return "\n".join(lines)


def _tail(before: str) -> str:
    return repr(before[-48:])[1:-1][-52:]


def _range(c: Cell) -> str:
    if c.first is None or c.last is None:
        return ""
    return f"position {c.first}" if c.first == c.last else f"positions {c.first}-{c.last}"


def _value(metric: Metric) -> float:
    return metric.value if isinstance(metric, Measured) else float("-inf")


def _percent(metric: Metric, interval: bool = True) -> str:
    if not isinstance(metric, Measured):
        return "not measured"
    ends = f" [{100 * metric.low:.0f}, {100 * metric.high:.0f}]" if interval and metric.low != metric.high else ""
    return f"{100 * metric.value:.0f}%{ends}"
