"""Free-running generation: does the understudy hold the part when nobody prompts it?"""

from understudy.core.records.metric import NotMeasured
from understudy.core.records.scorecard import Rollout, Scorecard
from understudy.web.glossary import term
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import figure
from understudy.web.sections.places import positions_chart
from understudy.web.tables import section, table


def rollout(card: Scorecard) -> Markup:
    """Figures, the loss along the written text, and samples side by side; of a policy, what its episodes earn."""
    if card.acting.episodes:
        return _acting(card)
    run = card.rollout
    if not run.prompts and isinstance(run.delta_loss, NotMeasured):
        return section("rollout", "Left to itself", tag("p", figure(run.delta_loss)))
    size = f"{run.prompts:,} prompts of {run.prompt_length:,} places, then {run.length:,} places written freely. "
    lead = join(
        size if run.prompts else None,
        "Each writes from the same prompts; the network itself reads both texts. ",
        term("rollout", "How to read this"),
    )
    rows = [
        ("the network’s text", figure(run.loss_of_network_text)),
        ("the understudy’s text", figure(run.loss_of_replaced_text)),
        (term("delta_loss", "difference"), figure(run.delta_loss, sign=True)),
    ]
    figures = table("Loss of the network on what each wrote", ("text of", "loss"), rows)
    arms = ("the network’s text", "the understudy’s text")
    along = positions_chart(run.by_position, "the position in what was written", arms)
    return section("rollout", "Left to itself", figures, along, _samples(run), lead=lead)


def _acting(card: Scorecard) -> Markup:
    act = card.acting
    lead = f"{act.episodes:,} episodes from the same beginnings, with the same random numbers. "
    rows = [
        ("the network", figure(act.of_network)),
        ("the understudy", figure(act.of_understudy)),
        ("random actions", figure(act.of_random_actions)),
        ("understudy − network", figure(act.difference, sign=True)),
        ("recovered of random actions", figure(act.recovered)),
    ]
    caption = "What an episode earns, in the environment’s units"
    return section("rollout", "Left to itself", table(caption, ("who acts", "return"), rows), lead=lead)


def _samples(run: Rollout) -> Markup | None:
    if not run.samples:
        return None
    return join(tag("h3", "Samples"), tag("div", *(_sample(i, s) for i, s in enumerate(run.samples)), class_="samples"))


def _sample(index: int, sample: dict[str, str]) -> Markup:
    """The prompt across, then one column per writer; open for the first two."""
    prompt = sample.get("prompt")
    texts = {who: text for who, text in sample.items() if who != "prompt"}
    columns = [tag("div", tag("h4", who.replace("_", " ")), _text(text)) for who, text in texts.items()]
    head = join(tag("b", f"Sample {index + 1}"), " ", tag("code", _first_line(prompt or ""), class_="soft"))
    body = [tag("div", tag("h4", "prompt"), _text(prompt), class_="prompt")] if prompt is not None else []
    body.append(tag("div", *columns, class_="columns"))
    return tag("details", tag("summary", head), *body, class_="more sample", open=index < 2)


def _text(text: str) -> Markup:
    # A <pre> drops one newline at its start, so it is given one to drop.
    return tag("pre", "\n", text, dir="ltr")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:60] if lines else ""
