"""A scorecard as text, at most 100 columns wide: what the command line prints and a notebook shows."""

from html import escape

from understudy.core.records.metric import Measured, Metric
from understudy.core.records.scorecard import Scorecard

WIDTH = 100
MASSIVE = 20
"""Medians from which the largest norm is worth a line."""


def summary(card: Scorecard) -> str:
    """What was replaced, how the network behaves, against whom, and where the loss is lost."""
    parts = [_headline(card), _behaviour(card), _rivals(card), _dictionaries(card), _slices(card)]
    return "\n\n".join(p for p in parts if p)


def html(card: Scorecard) -> str:
    """The same for a notebook."""
    return f"<pre>{escape(summary(card))}</pre>"


def figure(metric: Metric, digits: int = 3) -> str:
    """A value with its interval, short; the reason where it was not measured."""
    if not isinstance(metric, Measured):
        return f"not measured: {metric.not_measured}"
    form = f".{digits}f" if abs(metric.value) < 1e6 else ".2g"
    if metric.low == metric.high:
        return f"{metric.value:{form}}"
    return f"{metric.value:{form}} [{metric.low:{form}}, {metric.high:{form}}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(head), "-" * min(WIDTH, sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def _wrapped(label: str, items: list[str]) -> str:
    """`label: a, b, c`, broken between items."""
    lines, current = [], f"{label}: "
    for i, item in enumerate(items):
        piece = item + (", " if i + 1 < len(items) else "")
        if len(current) + len(piece.rstrip()) > WIDTH:
            lines.append(current.rstrip())
            current = "  "
        current += piece
    return "\n".join([*lines, current.rstrip()])


def _headline(card: Scorecard) -> str:
    r = card.replaced
    shares = f"{r.share_of_parameters:.0%} of the parameters, {r.share_of_compute:.0%} of the compute"
    over = f"{card.units} documents" if card.units < card.sequences else "sequences"
    lines = [
        f"The understudy of {card.network} on {card.data}",
        *(f"WARNING: {text}" for text in card.warnings),
        _wrapped(f"replaced ({shares})", r.modules or ["no module"]),
        _wrapped("rewritten, its module still running", r.rewritten) if r.rewritten else "",
        _wrapped("still original", r.still_original),
        f"still original and not scored: the first {_places(r.skip_first)} of every sequence" if r.skip_first else "",
        _massive(card),
        f"{card.sequences} sequences, {card.places:,} scored places; intervals are 95%, over {over}",
    ]
    return "\n".join(line for line in lines if line)


def _places(n: int) -> str:
    return "place" if n == 1 else f"{n} places"


def _massive(card: Scorecard) -> str:
    """The site with the most massive activations, where there are any."""
    norms = [(d.largest_norm, d.name or d.site) for d in card.dictionaries]
    value, site = max(((m.value, site) for m, site in norms if isinstance(m, Measured)), default=(0.0, ""))
    return f"massive activations: the largest norm at {site} is {value:.0f} x the median" if value >= MASSIVE else ""


def _behaviour(card: Scorecard) -> str:
    b = card.replacement
    unit = b.kl.unit if isinstance(b.kl, Measured) else "nats"
    rows: list[tuple[str, Metric, str]] = [
        ("loss of the network", b.loss_clean, "nats"),
        ("loss with the understudy", b.loss_replaced, "nats"),
        ("delta loss", b.delta_loss, "nats"),
        ("divergence from the network", b.kl, unit),
        ("same top choice", b.top1_agreement, ""),
        ("recovered of zero ablation", b.recovered.zero, ""),
        ("recovered of mean ablation", b.recovered.mean, ""),
        ("recovered of position-mean ablation", b.recovered.position_mean, ""),
        ("recovered of resample ablation", b.recovered.resample, ""),
        ("as good as an n-gram of order", b.equivalent_ngram, ""),
        ("equivalent compute", b.equivalent_compute, "FLOPs"),
        ("drift of the text it writes", card.rollout.delta_loss, "nats"),
    ]
    if isinstance(card.acting.of_network, Measured):
        act = card.acting
        rows += [
            ("return of the network", act.of_network, "an episode"),
            ("return with the understudy", act.of_understudy, "an episode"),
            ("return of random actions", act.of_random_actions, "an episode"),
            ("difference of returns", act.difference, "an episode"),
            ("recovered of random actions' return", act.recovered, ""),
        ]
    pad = max(len(name) for name, *_ in rows) + 2
    return "\n".join(f"{name:<{pad}}{figure(m)} {u if isinstance(m, Measured) else ''}".rstrip() for name, m, u in rows)


def _rivals(card: Scorecard) -> str:
    if not card.baselines:
        return ""
    rows = [
        [
            name + (" *" if rival.is_oracle else ""),
            figure(rival.l0, 0),
            figure(rival.replacement.delta_loss),
            figure(rival.paired_delta_loss),
            rival.verdict,
        ]
        for name, rival in sorted(card.baselines.items(), key=lambda item: _value(item[1].replacement.delta_loss))
    ]
    head = ["rival", "l0", "delta loss", "minus the understudy's", "verdict"]
    return table(head, rows) + "\n* an oracle: it reads what the replaced module itself computes"


def _dictionaries(card: Scorecard) -> str:
    rows = [
        [
            d.name or d.site,
            d.kind,
            f"{d.n_latents:,}",
            figure(d.fvu),
            figure(d.l0, 1),
            figure(d.dead),
            figure(d.shrinkage),
        ]
        for d in card.dictionaries
    ]
    return table(["dictionary", "kind", "latents", "fvu", "l0", "dead", "shrinkage"], rows)


def _slices(card: Scorecard) -> str:
    """A table for each column, largest contribution to the delta loss first."""
    tables = []
    for column in dict.fromkeys(s.column for s in card.slices):
        own = [s for s in card.slices if s.column == column]
        measured = [s for s in own if isinstance(s.delta_loss, Measured)]
        measured.sort(key=lambda s: -_value(s.delta_loss) * s.share)
        rows = [[s.name, f"{s.share:.1%}", figure(s.loss_clean), figure(s.delta_loss)] for s in measured]
        name = "kind of token" if column == "kind" else column
        shown = [table([name, "share", "loss of the network", "delta loss"], rows)] if rows else []
        missing = [f"{s.name} ({s.share:.1%})" for s in own if s not in measured]
        shown += [_wrapped(f"{name}, not measured", missing)] if missing else []
        tables.append("\n".join(shown))
    return "\n\n".join(tables)


def _value(metric: Metric) -> float:
    return metric.value if isinstance(metric, Measured) else float("inf")
