"""Names of sites and parts: short names, globs, full paths, and TransformerLens names, as a network's own."""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from understudy.core.network import NamedSite, Network, Part
from understudy.core.records.errors import UnknownName
from understudy.core.site import Site

Patterns = str | Site | Iterable[str | Site]

_BLOCK_HOOKS = {
    "hook_resid_post": "resid.{i}", "hook_out": "resid.{i}",
    "hook_resid_pre": "resid.{before}", "hook_in": "resid.{before}",
    "hook_attn_out": "attn_write.{i}", "hook_mlp_out": "mlp_write.{i}",
    "attn.hook_in": "attn_in.{i}", "attn.hook_out": "attn_out.{i}",
    "mlp.hook_in": "mlp_in.{i}", "mlp.hook_out": "mlp_out.{i}",
    "mixer.hook_in": "mixer_in.{i}", "mixer.hook_out": "mixer_out.{i}",
}  # fmt: skip
"""`X_write` is what reaches the stream: a norm behind the child where there is one, else the child's own output."""


def find_sites(network: Network, patterns: Patterns) -> tuple[Site, ...]:
    """The sites that the patterns name, in the order of the forward pass, each once.

    A pattern is a short name (`mlp_out.3`), a family (`resid`, all layers), a glob (`mlp_out.[02]`), a part (`mlp.3`:
    the site it writes), a module path (`model.layers.3.mlp:in`, globs too) or a TransformerLens name
    (`blocks.3.hook_resid_pre`). Several come as a list or separated by commas.

    Raises UnknownName with the nearest names, or with the reason a TransformerLens name has no counterpart here.
    """
    named = network.named_sites()
    order = {row.site: i for i, row in reversed(list(enumerate(named)))}
    found: dict[Site, None] = {}
    for pattern in _each(patterns):
        sites = [pattern] if isinstance(pattern, Site) else _match(network, named, pattern)
        found |= dict.fromkeys(sites)
    modules = {name: i for i, (name, _) in enumerate(network.module.named_modules(remove_duplicate=False))}
    last = len(order)

    def rank(site: Site) -> tuple[int, int, int]:
        # A site without a short name keeps the order in which modules are registered, after those that have one.
        if site.is_input:
            return (-1, 0, True)
        return (order.get(site, last), modules.get(site.module, -1), site.direction != "in")

    return tuple(sorted(found, key=rank))


def find_parts(network: Network, patterns: Patterns) -> tuple[Part, ...]:
    """The replaceable parts that the patterns name (`mlp`, `mlp.3`, `attn.*`, a module's path), in forward order.

    Raises UnknownName; for a site (`mlp_out.3`) it says which part to name instead.
    """
    parts = network.parts()
    found: set[str] = set()
    for pattern in _each(patterns):
        text = str(pattern)
        matched = [p.name for p in parts if _matches(p.name, text) or any(_matches(m, text) for m in p.replaces)]
        if not matched:
            raise _no_part(network, parts, text)
        found |= set(matched)
    return tuple(p for p in parts if p.name in found)


def short_name(network: Network, site: Site) -> str:
    """The short name of a site, or its full path where it has none."""
    return next((row.name for row in network.named_sites() if row.site == site), str(site))


def _each(patterns: Patterns) -> Iterator[str | Site]:
    for item in [patterns] if isinstance(patterns, (str, Site)) else patterns:
        if isinstance(item, Site):
            yield item
        else:
            yield from (text.strip() for text in re.split(r",(?![^\[]*\])", item) if text.strip())


def _match(network: Network, named: tuple[NamedSite, ...], pattern: str) -> list[Site]:
    if pattern.startswith(("blocks.", "hook_")) and "hook_" in pattern:
        return _from_transformer_lens(network, named, pattern)
    sites = [row.site for row in named if _matches(row.name, pattern)]
    if not sites:
        sites = [part.write for part in network.parts() if _matches(part.name, pattern)]
    return sites or _by_path(network, named, pattern)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.rpartition(".")[0] == pattern or fnmatchcase(name, pattern)


def _by_path(network: Network, named: tuple[NamedSite, ...], pattern: str) -> list[Site]:
    known = [name for name, _ in network.module.named_modules(remove_duplicate=False)]
    site = Site.parse(pattern)
    if site.is_input:
        inputs = network.example().inputs
        if site.port not in inputs:
            raise UnknownName.among("input", pattern, [f"inputs:{name}" for name in inputs])
        return [site]
    if site.module in known and ":" in pattern:
        return [site]
    if ":" not in pattern and pattern in known:
        return [site]
    matched = [Site(name, site.port, site.call) for name in known if name and fnmatchcase(name, site.module)]
    if matched:
        return matched
    names = [row.name for row in named] + [part.name for part in network.parts()]
    names += list(dict.fromkeys(n.rpartition(".")[0] for n in names if "." in n))
    hint = f"`understudy sites {network.name}` lists all."
    if ":" in pattern or pattern.count(".") > 1 or not names:
        raise UnknownName.among(f"module path of {network.name}", site.module, known[1:], hint)
    raise UnknownName.among(f"site of {network.name}", pattern, names, hint)


def _from_transformer_lens(network: Network, named: tuple[NamedSite, ...], pattern: str) -> list[Site]:
    names = {row.name: row.site for row in named}
    if pattern == "hook_embed":
        ours = "token_embed" if "token_embed" in names else "embed"
        return [_named(network, names, pattern, ours)]
    found = re.fullmatch(r"blocks\.(\d+|\*)\.(.+)", pattern)
    if found is None:
        raise _untranslatable(network, pattern, "it has no counterpart with a short name")
    layers = sorted({int(n.rpartition(".")[2]) for n in names if n.startswith("resid.")})
    chosen = layers if found[1] == "*" else [int(found[1])]
    if not set(chosen) <= set(layers):
        why = f"its blocks are 0 to {len(layers) - 1}" if layers else "no block is named"
        raise _untranslatable(network, pattern, why)
    return [_block_hook(network, names, pattern, found[2], i) for i in chosen]


def _block_hook(network: Network, names: dict[str, Site], pattern: str, hook: str, i: int) -> Site:
    if hook == "mlp.hook_post":
        part = next((p for p in network.parts() if p.name == f"mlp.{i}"), None)
        neurons = None if part is None else network.neurons(part)
        if neurons is None:
            raise _untranslatable(network, pattern, f"mlp.{i} has no neurons of the form activation @ W + bias")
        return neurons.site
    if hook not in _BLOCK_HOOKS:
        raise _untranslatable(network, pattern, "it lies inside a module, or between modules, where no hook reaches")
    ours = _BLOCK_HOOKS[hook].format(i=i, before=i - 1)
    ours = "embed" if ours == "resid.-1" else ours
    if "_write." in ours and ours not in names:
        if i in network.unsure_writes:
            raise _untranslatable(network, pattern, f"what block {i} adds to the stream was not found")
        ours = ours.replace("_write.", "_out.")
    return _named(network, names, pattern, ours)


def _named(network: Network, names: dict[str, Site], pattern: str, ours: str) -> Site:
    if ours not in names:
        raise _untranslatable(network, pattern, f"it would be {ours}, which is not there")
    return names[ours]


def _untranslatable(network: Network, pattern: str, why: str) -> UnknownName:
    return UnknownName(
        f"the TransformerLens name {pattern!r} cannot be translated for {network.name}: {why}. "
        f"Use one of the names that `understudy sites {network.name}` lists, or a module path such as "
        "model.layers.3.mlp:out."
    )


def _no_part(network: Network, parts: tuple[Part, ...], text: str) -> UnknownName:
    as_part = re.sub(r"_(in|out|write)(?=\.|$)", "", text)
    if as_part != text and any(_matches(p.name, as_part) for p in parts):
        return UnknownName(
            f"{text!r} is a site of {network.name}, not a part. A transcoder replaces a whole part and knows what it "
            f"reads and writes: say {as_part!r}."
        )
    names = [p.name for p in parts]
    known = list(dict.fromkeys([*(n.rpartition(".")[0] for n in names), *names]))
    if not known:
        return UnknownName(f"{network.name} names no parts to replace whole; give it parts=... to name some.")
    return UnknownName.among(f"part of {network.name}", text, known)
