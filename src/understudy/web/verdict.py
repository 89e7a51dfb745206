"""The headline: one sentence, and right under it what was replaced and what still runs as original."""

from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.scorecard import Scorecard
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.names import listed, parts_played
from understudy.web.numerals import as_text, count, figure, percent
from understudy.web.tables import ablation_key, chips, rival_name


def headline(card: Scorecard) -> Markup:
    """Verdict, replaced and remaining parts, comparison with the rivals, and the six figures people look for first."""
    return tag(
        "header",
        tag("p", "Understudy ", tag("span", card.run), class_="kicker"),
        tag("h1", sentence(card), id="verdict"),
        *(tag("p", tag("strong", "Warning: "), text, class_="against") for text in card.warnings),
        _cast(card),
        tag("p", rivals_sentence(card), class_="against") if card.baselines else None,
        _key_figures(card),
        tag("p", *_where(card), class_="where"),
        class_="headline",
    )


def sentence(card: Scorecard) -> Markup:
    """`The understudy plays 4 of 4 MLPs at +0.24 nats [0.22, 0.26], equal to a 3.4-gram model; 62% of ...`. Of n-grams
    only where the network reads text."""
    replaced, behaviour = card.replaced, card.replacement
    n = len(replaced.rewritten)
    rewrites = f"The understudy rewrites {n} activation{'s' if n != 1 else ''}, every module still running, "
    plays = f"The understudy plays {parts_played(replaced.modules, replaced.still_original)} "
    return join(
        rewrites if replaced.rewritten and not replaced.modules else plays,
        _at(behaviour.delta_loss),
        _ngram(behaviour.equivalent_ngram) if card.ngram_losses or card.rollout.prompts else None,
        f"; {replaced.share_of_parameters:.0%} of parameters and {replaced.share_of_compute:.0%} of compute replaced.",
    )


def _at(delta: Metric) -> Markup:
    if isinstance(delta, NotMeasured):
        return join("with an excess loss not measured ", _because(delta))
    value, interval, unit = as_text(delta, sign=True)
    number = tag("strong", f"{value} {unit}")
    return join("at ", number, tag("span", f" {interval}", class_="interval") if interval else None)


def _ngram(order: Metric) -> Markup:
    if isinstance(order, NotMeasured):
        beyond = order.not_measured.startswith(("better than", "worse than"))
        return join(", ", order.not_measured) if beyond else join(", n-gram equivalent not measured ", _because(order))
    ends = "" if order.low == order.high else f" [{order.low:.1f}, {order.high:.1f}]"
    return join(
        ", equal to a ", tag("strong", f"{order.value:.1f}-gram"), " model", tag("span", ends, class_="interval")
    )


def _because(missing: NotMeasured) -> Markup:
    return tag("span", f"({missing.not_measured})", class_="missing")


def rivals_sentence(card: Scorecard) -> str:
    """How many rivals the understudy beats, by paired intervals. Ablations are not counted as rivals."""
    rivals = {name: rival for name, rival in card.baselines.items() if not ablation_key(name)}
    groups: dict[str, list[str]] = {"worse": [], "better": [], "undecided": [], "not measured": []}
    for name, rival in rivals.items():
        groups[rival.verdict].append(rival_name(name) + (" (an oracle)" if rival.is_oracle else ""))
    if not rivals:
        return "No rival was measured beside it, only ablations."
    parts = [f"it beats {len(groups['worse'])} of {len(rivals)} rivals"]
    if groups["better"]:
        parts.append(f"loses to {listed(groups['better'])}")
    if groups["undecided"]:
        parts.append(f"is undecided against {listed(groups['undecided'])}")
    if groups["not measured"]:
        parts.append(f"was not compared with {listed(groups['not measured'])}")
    return f"On the same sequences {listed(parts)}."


def _cast(card: Scorecard) -> Markup:
    replaced = card.replaced
    shares = join(
        f"{percent(replaced.share_of_parameters)} ",
        term("parameters", "of parameters"),
        f", {percent(replaced.share_of_compute)} ",
        term("flops", "of compute"),
    )
    played = tag(
        "div", tag("h2", "Replaced"), chips(replaced.modules or ["no module"]), tag("p", shares, class_="soft")
    )
    original = tag("div", tag("h2", "Still runs as original"), chips(replaced.still_original, "nothing was named"))
    return tag("div", played, original, class_="cast")


def _key_figures(card: Scorecard) -> Markup:
    behaviour = card.replacement
    figures = [
        (term("delta_loss"), figure(behaviour.delta_loss, sign=True)),
        (term("kl"), figure(behaviour.kl)),
        (term("top1"), figure(behaviour.top1_agreement)),
        (term("recovered", "Recovered against mean"), figure(behaviour.recovered.mean)),
    ]
    if card.acting.episodes:
        figures += [
            (tag("a", "Return", href="#rollout"), figure(card.acting.of_understudy)),
            (tag("a", "Return kept", href="#rollout"), figure(card.acting.recovered)),
        ]
    else:
        figures += [
            (term("ngram"), figure(behaviour.equivalent_ngram)),
            (term("compute"), figure(behaviour.equivalent_compute)),
        ]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in figures), class_="key-figures")


def _where(card: Scorecard) -> list[Markup | str]:
    measured = f"{count(card.places)} scored places in {card.sequences:,} sequences"
    return ["Network ", tag("b", card.network), ", data ", tag("b", card.data), f"; {measured}. ", term("interval")]
