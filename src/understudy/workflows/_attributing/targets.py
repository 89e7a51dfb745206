"""From what a user typed as a target to the values a graph explains."""

import re
from typing import Any

import torch

from understudy.attribution.rows import Target
from understudy.attribution.sources import Sources
from understudy.attribution.targets import difference, latent, likely, output
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName

LATENT = re.compile(r"(?P<where>.+)/(?P<id>\d+)(@(?P<place>\d+))?")


def chosen_targets(network: Network, sources: Sources, text: str, at: int, tokenizer: Any) -> list[Target]:
    """`top`, `#3`, a token, `A - B`, `mlp.3/174` or `mlp.3/174@12`. Raises BadInput, UnknownName."""
    local = sources.local
    if text == "top":
        return likely(local, at, None if tokenizer is None else lambda i: tokenizer.decode([i]))
    found = LATENT.fullmatch(text)
    if found is not None and not text.startswith("#"):
        return [_latent(network, sources, text, **found.groupdict())]
    if " - " in text.strip():
        plus, minus = (token_index(part, tokenizer) for part in text.split(" - ", 1))
        return [difference(local, plus, minus, at, text)]
    return [output(local, token_index(text, tokenizer), at, repr(text))]


def token_index(text: str, tokenizer: Any) -> int:
    """A token or #N as an output. Raises BadInput."""
    if re.fullmatch(r"#\d+", text.strip()):
        return int(text.strip()[1:])
    if tokenizer is None:
        raise BadInput(f"--target {text!r}: this network has no tokenizer; name an output by number (#3) or a latent.")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise BadInput(f"--target {text!r} is {len(ids)} tokens ({pieces}): name one token, spaces included, or #N.")
    return ids[0]


def _latent(network: Network, sources: Sources, text: str, where: str, id: str, place: str | None) -> Target:
    parts = {p.name: p.write for p in network.parts()} | {s.name: s.site for s in network.named_sites()}
    known = {str(e.member.writes[0]) for e in sources.events}
    site = str(parts.get(where, where))
    if site not in known:
        names = [name for name, s in parts.items() if str(s) in known]
        raise UnknownName.among("dictionary of this graph", where, names or sorted(known))
    for event in reversed(sources.events):
        if str(event.member.writes[0]) != site:
            continue
        hits = event.z.ids == int(id)
        if place is not None:
            hits &= event.z.rows == int(place)
        index = hits.nonzero().squeeze(-1)
        if len(index):
            best = int(index[-1]) if place is not None else int(index[torch.argmax(event.z.values[index])])
            return latent(sources, event, best, f"{where}/{id}@{int(event.z.rows[best])}")
    at = f" at place {place}" if place is not None else ""
    raise BadInput(f"{text}: the latent is silent{at} on this input, so there is nothing to explain (see --silent).")
