"""Loss against rivals: every arm on one axis, then the same as a table with the paired verdicts."""

from understudy.core.records.metric import Measured, Metric, exact
from understudy.core.records.scorecard import Rival, Scorecard
from understudy.web.charts import Dot, Look, dot_chart
from understudy.web.glossary import term
from understudy.web.markup import Child, Markup, join, tag
from understudy.web.numerals import figure
from understudy.web.scales import around_zero
from understudy.web.tables import ABLATIONS, ablation_key, by_loss, rival_name, section, span, table

VERDICTS = {
    "worse": ("understudy better", "good"),
    "better": ("rival better", "bad"),
    "undecided": ("undecided", "open"),
    "not measured": ("not measured", "open"),
}


def rivals(card: Scorecard) -> Markup:
    """The chart and the table under it."""
    lead = join(
        "How much worse each arm predicts than the network itself, on the same places. ",
        "The understudy deserves its part if its mark lies left of its rivals’ by more than chance.",
    )
    return section("rivals", "Loss against rivals", _chart(card), _table(card), lead=lead)


def _chart(card: Scorecard) -> Markup:
    arms: list[tuple[str, Metric, Look]] = [
        (rival_name(name), rival.replacement.delta_loss, _look(name, rival)) for name, rival in by_loss(card.baselines)
    ]
    for key, metric in _implied(card):
        arms.append((f"{ABLATIONS[key]} (implied)", metric, "ablation"))
    arms.append(("understudy", card.replacement.delta_loss, "ours"))
    arms.append(("the network itself", exact(0.0, "nats", card.sequences), "clean"))
    arms.sort(key=lambda arm: (not isinstance(arm[1], Measured), getattr(arm[1], "value", 0.0)))
    ends = [end for _, metric, _ in arms for end in span(metric) if end is not None]
    ours = span(card.replacement.delta_loss)[0] or 0.0
    scale = around_zero(ends, near=ours)
    dots = [Dot(_label(name, look), figure(m, sign=True, unit=False), *span(m), look=look) for name, m, look in arms]
    bent = "" if scale.kind == "linear" else ", linear near 0 and logarithmic beyond"
    return dot_chart(dots, scale, "Excess loss over the network", f"nats per place, 95% intervals{bent}")


def _look(name: str, rival: Rival) -> Look:
    return "ablation" if ablation_key(name) else "oracle" if rival.is_oracle else "rival"


def _label(name: str, look: str) -> Markup:
    return join(name, tag("small", " oracle", class_="soft") if look == "oracle" else None)


def _implied(card: Scorecard) -> list[tuple[str, Measured]]:
    """Ablations that are not among the arms, placed where the recovered share puts them; they carry no interval."""
    delta = card.replacement.delta_loss
    shown = {ablation_key(name) for name in card.baselines}
    found = []
    for key in ABLATIONS:
        share = getattr(card.replacement.recovered, key)
        if key in shown or not isinstance(delta, Measured) or not isinstance(share, Measured):
            continue
        if delta.value > 0 and share.value < 0.9999:
            damage = delta.value / (1 - share.value)
            found.append((key, exact(damage, delta.unit, delta.n)))
    return found


def _table(card: Scorecard) -> Markup:
    head = (
        "arm",
        term("paired", "verdict"),
        term("loss", "loss, nats"),
        term("delta_loss", "excess, nats"),
        term("paired", "rival − understudy, nats"),
        term("l0"),
        term("kl", "KL, nats"),
        term("top1", "top-1"),
    )
    own = card.replacement
    l0s = [row.l0.value for row in card.dictionaries if isinstance(row.l0, Measured)]
    clean = ("the network itself", "", figure(own.loss_clean, unit=False), "0", "", "", "0", "100%")
    rows: list[tuple[Child, ...]] = [clean]
    rows.append(
        (
            tag("strong", "understudy"),
            "",
            figure(own.loss_replaced, unit=False),
            figure(own.delta_loss, sign=True, unit=False),
            "",
            f"{sum(l0s) / len(l0s):.1f}" if l0s else "",
            figure(own.kl, unit=False),
            figure(own.top1_agreement),
        )
    )
    rows += [_row(name, rival) for name, rival in by_loss(card.baselines)]
    return join(table("Every arm on the same places", head, rows, words=2), _notes(card))


def _row(name: str, rival: Rival) -> tuple[Child, ...]:
    said, look = VERDICTS[rival.verdict]
    arm = rival.replacement
    oracle = join(" ", term("oracle", "oracle")) if rival.is_oracle else None
    return (
        join(rival_name(name), tag("small", oracle) if oracle else None),
        tag("span", said, class_=f"verdict {look}"),
        figure(arm.loss_replaced, unit=False),
        figure(arm.delta_loss, sign=True, unit=False),
        figure(rival.paired_delta_loss, sign=True, unit=False),
        figure(rival.l0, unit=False),
        figure(arm.kl, unit=False),
        figure(arm.top1_agreement),
    )


def _notes(card: Scorecard) -> Markup | None:
    notes = [tag("li", tag("b", rival_name(n)), ": ", r.note) for n, r in by_loss(card.baselines) if r.note]
    if _implied(card):
        text = "placed where the recovered share puts it: excess of the understudy / (1 − recovered). No interval."
        notes.append(tag("li", tag("b", "(implied)"), ": ", text))
    return tag("ul", *notes, class_="notes") if notes else None
