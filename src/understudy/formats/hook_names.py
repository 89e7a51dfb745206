"""Our sites to the hook names of other libraries: the inverse of `hooks.place`. No name is an error, never a guess.

A site may be another name of one that has a hook: the norm's output is what the MLP reads, the last projection's output
is what attention gives. Such a pair is found by identity of memory in a forward pass on the example; where the site is
written, the same disturbance at both must give the same output, bit for bit.
"""

from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.errors import UnknownName
from understudy.core.site import Site
from understudy.formats.hooks import norms

HOOKS = {
    "resid": "hook_resid_post", "attn_in": "attn.hook_in", "attn_out": "attn.hook_out", "attn_write": "hook_attn_out",
    "mlp_in": "mlp.hook_in", "mlp_out": "mlp.hook_out", "mlp_write": "hook_mlp_out", "mixer_in": "mixer.hook_in",
    "mixer_out": "mixer.hook_out",
}  # fmt: skip
NEURONS = {"attn": "attn.hook_z", "mlp": "mlp.hook_post"}


def name(network: Network, site: Site, is_written: bool = False) -> str:
    """The TransformerLens name of a site. Raises UnknownName where it has none."""
    return names(network, [site], {site} if is_written else ())[site]


def names(network: Network, sites: Iterable[Site], written: Collection[Site] = ()) -> dict[Site, str]:
    """TransformerLens names of sites. Raises UnknownName where one has none, or none that means the same if written."""
    same = canonical(network, sites, written)
    found = {site: _hook(network, one, site in written) for site, one in same.items()}
    for site, hook in found.items():
        if hook is None:
            near = [row.name for row in network.named_sites()]
            raise UnknownName.among(
                f"site with a TransformerLens name in {network.name}", short_name(network, site), near
            )
    return {site: hook for site, hook in found.items() if hook is not None}


def canonical(network: Network, sites: Iterable[Site], written: Collection[Site] = ()) -> dict[Site, Site]:
    """Each site as the one with a short or a hook name that is the same tensor; itself where there is none.

    written: sites that are replaced, for which the other must also have the same effect.
    """
    wanted = tuple(dict.fromkeys(sites))
    out = {site: site for site in wanted}
    unknown = [site for site in wanted if _hook(network, site) is None]
    if not unknown:
        return out
    # A norm may feed attention and MLP alike; dictionaries of others read it for the MLP.
    rows = sorted(network.named_sites(), key=lambda row: not row.name.startswith("mlp"))
    known = [*(row.site for row in rows), *(Site(n.path, "in") for n in norms(network).values())]
    known += [site for site in _neurons(network, unknown) if site not in known]
    group = _groups(network, [*known, *unknown])
    for site in unknown:
        alike = [other for other in known if group[other] == group[site]]
        fits = (o for o in alike if site not in written or _same_effect(network, site, o))
        out[site] = next(fits, site)
    return out


def _groups(network: Network, sites: list[Site]) -> dict[Site, Site]:
    """Each site's first name among those that are one tensor."""
    first = {site: site for site in sites}
    for a, b in network.same_tensor(sites):
        first[b] = first[a]
    return first


@torch.no_grad()
def _same_effect(network: Network, one: Site, other: Site) -> bool:
    """Whether adding the same noise to what lies at either gives one output, and not the output without it."""
    clean, *changed = (_disturbed(network, site) for site in (None, one, other))
    return torch.equal(*changed) and not torch.equal(clean, changed[0])


def _disturbed(network: Network, site: Site | None) -> Tensor:
    def edit(value: Tensor, call: int) -> Tensor:
        noise = torch.randn(value.numel(), generator=torch.Generator().manual_seed(call))
        return value + value.std() * noise.reshape(value.shape).to(value)

    with network.edited({} if site is None else {site: edit}):
        return network.scores(network.forward(network.example()))


def _hook(network: Network, site: Site, is_written: bool = False) -> str | None:
    """The hook whose site this is."""
    short = short_name(network, site)
    family, _, layer = short.rpartition(".")
    if family in HOOKS and layer.isdecimal():
        if family in ("attn_out", "mlp_out") and not _has(network, f"{family[:-4]}_write.{layer}"):
            if int(layer) in network.unsure_writes:
                return f"blocks.{layer}.{HOOKS[family]}"
            family = f"{family[:-4]}_write"
        return f"blocks.{layer}.{HOOKS[family]}"
    if short in ("embed", "token_embed"):
        return "hook_embed" if short == "token_embed" or not _has(network, "token_embed") else "blocks.0.hook_resid_pre"
    for layer, norm in norms(network).items():
        if site == Site(norm.path, "in"):
            # What is written here only the MLP sees; at hook_resid_mid the stream would carry it on as well.
            return f"blocks.{layer}.{'hook_mlp_in' if is_written or norm.is_beside else 'hook_resid_mid'}"
    return _neurons(network, [site]).get(site)


def _neurons(network: Network, sites: list[Site]) -> dict[Site, str]:
    """The sites of neurons and heads of the parts that these sites lie in, with their hooks."""
    out = {}
    for part in network.parts():
        role, _, layer = part.name.rpartition(".")
        inside = tuple(f"{module}." for module in part.replaces)
        if role in NEURONS and any(site.module.startswith(inside) for site in sites):
            found = _FOUND.setdefault(network, {})
            if part.name not in found:
                neurons = network.neurons(part)
                found[part.name] = None if neurons is None else neurons.site
            if (at := found[part.name]) is not None:
                out[at] = f"blocks.{layer}.{NEURONS[role]}"
    return out


_FOUND: WeakKeyDictionary[Network, dict[str, Site | None]] = WeakKeyDictionary()
"""Where the neurons of parts are: finding them takes forward passes."""


def _has(network: Network, short: str) -> bool:
    return any(row.name == short for row in network.named_sites())
