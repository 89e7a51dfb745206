"""Short names of sites and modules: `model.layers.3.mlp:out` is L3 where that says enough."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_SCAFFOLD = frozenset({"model", "module", "network", "transformer", "layers", "layer", "blocks", "block", "h"})
_PLURALS = {"mlp": "MLPs", "attn": "attention layers", "self_attn": "attention layers", "attention": "attention layers"}


def layer_names(sites: Sequence[str]) -> dict[str, str]:
    """A short, unique, link-safe name per site: `L3` where each site has its own layer number, else `D0`, `D1`..."""
    sites = list(dict.fromkeys(sites))
    numbers = [re.findall(r"(?<![a-zA-Z0-9])\d+(?![a-zA-Z0-9])", site.split("#")[0]) for site in sites]
    firsts = [n[0] if len(n) == 1 else None for n in numbers]
    if None not in firsts and len(set(firsts)) == len(sites):
        return {site: f"L{int(first or 0)}" for site, first in zip(sites, firsts, strict=True)}
    return {site: f"D{i}" for i, site in enumerate(sites)}


def kind_of(module: str) -> str:
    """What a module path is: its last word that is not scaffolding. `model.layers.3.mlp` -> `mlp`."""
    words = [w for w in re.split(r"[./\s]+", module.split(":")[0]) if w and not w.isdigit() and w not in _SCAFFOLD]
    return words[-1] if words else module


def parts_played(replaced: Sequence[str], still_original: Sequence[str]) -> str:
    """`4 of 4 MLPs`, or `6 parts (4 mlp, 2 attn)` if they are of several kinds."""
    kinds = Counter(kind_of(m) for m in replaced)
    if len(kinds) == 1:
        kind, n = next(iter(kinds.items()))
        left = sum(1 for m in still_original if kind_of(m) == kind)
        return f"{n} of {n + left} {_plural(kind, n + left)}"
    listed = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return f"{len(replaced)} parts ({listed})" if kinds else "no part"


def _plural(kind: str, n: int) -> str:
    plural = _PLURALS.get(kind)
    if plural is None:
        return kind if n == 1 else f"{kind} modules"
    return plural.removesuffix("s") if n == 1 else plural


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last
