"""Tokens of a network's text made visible: newlines, tabs and runs of spaces are glyphs, activations are shades."""

import math
import re
from collections.abc import Iterable, Sequence

from understudy.core.records.scorecard import Context, Token
from understudy.web.markup import Markup, join, tag
from understudy.web.numerals import plain

SHADES = 9
LONGEST = 160
"""Characters of one token that are shown."""
_BLANKS = re.compile(r"(\n|\t| {2,})")
_GLYPHS = {"\n": "↵", "\t": "⇥"}


def visible(text: str, whole_token: bool = True) -> Markup:
    """Text with its blanks as dim glyphs. A single space stays a space, unless it is the `whole_token`."""
    if len(text) > LONGEST and whole_token:
        return join(visible(text[:LONGEST]), tag("i", f"… {len(text) - LONGEST:,} more characters"))
    if whole_token and text == "":
        return tag("i", "∅")
    if whole_token and text == " ":
        return tag("i", "·")
    parts = _BLANKS.split(text)
    return join(tag("i", _GLYPHS.get(p, "·" * len(p))) if _BLANKS.fullmatch(p) else p for p in parts)


def shade(activation: float, maximum: float) -> int:
    """0 for silent, else 1..9 by share of the latent's maximum."""
    if activation == 0 or not math.isfinite(activation):
        return 0
    share = abs(activation) / maximum if maximum > 0 else 1.0
    return max(1, min(SHADES, math.ceil(SHADES * share)))


def run_of_tokens(tokens: Sequence[Token], peak: int, maximum: float) -> Markup:
    """Tokens in reading order. Silent neighbours are merged; active ones carry shade and activation."""
    return Markup("".join(_spans(tokens, peak, maximum)))


def _spans(tokens: Sequence[Token], peak: int, maximum: float) -> Iterable[Markup]:
    silent: list[str] = []
    for i, token in enumerate(tokens):
        level = shade(token.activation, maximum)
        if not level and i != peak:
            # A long silent token is cut like an active one.
            long = len(token.text) > LONGEST
            silent.append(token.text[:LONGEST] + "…" if long else token.text)
            continue
        if silent:
            yield visible("".join(silent), whole_token=False)
            silent = []
        classes = f"a{level} peak" if i == peak else f"a{level}"
        yield tag("b", visible(token.text), class_=classes, title=plain(token.activation))
    if silent:
        yield visible("".join(silent), whole_token=False)


def snippet(context: Context, maximum: float, before: int = 7, after: int = 5) -> Markup:
    """The tokens next to a context's peak, for one line of a list."""
    start = max(0, context.peak - before)
    tokens = context.tokens[start : context.peak + after + 1]
    return tag("bdi", run_of_tokens(tokens, context.peak - start, maximum), dir="ltr")
