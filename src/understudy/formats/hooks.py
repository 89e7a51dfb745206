"""Hook names of other libraries to our sites (back: `hook_names`). What has no site is an error, never a guess.

Understood: TransformerLens names (`blocks.3.hook_mlp_out`), paths of transformers' modules with a port
(`model.layers.3.mlp:out`, `model.layers.3.mlp.output`) and paths without the model's own prefix (`layers.3.mlp`).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from understudy.core.names import find_sites
from understudy.core.network import Network
from understudy.core.records.errors import UnknownName
from understudy.core.site import Site

LENS = re.compile(r"blocks\.(\d+)\.(.+)")


class Place(NamedTuple):
    """Where a hook is: its value = (the site's value - center) / scale; None: the site's value itself."""

    site: Site
    center: Tensor | None = None
    scale: Tensor | None = None


def place(network: Network, hook: str, is_written: bool = False) -> Place:
    """The site of a hook name. Raises UnknownName with the reason and the nearest names.

    is_written: what lies there is to be replaced, not only read.

    `ln2.hook_normalized` lies inside a norm, before its gain: no module ends there, so its place is the norm's output
    with the gain taken off, checked on the example batch.
    """
    found = LENS.fullmatch(hook)
    if found is None:
        if hook.startswith("hook_"):
            return Place(find_sites(network, hook)[0])
        return Place(_by_path(network, hook))
    layer, name = int(found[1]), found[2]
    if name == "attn.hook_z":
        return Place(_heads(network, hook, layer))
    if name == "hook_resid_mid" and is_written:
        raise UnknownName(
            f"the hook {hook!r} can only be read in {network.name}, not replaced: the stream goes on past the norm "
            f"that reads it, and no module makes or takes both. What the MLP alone sees is blocks.{layer}.hook_mlp_in."
        )
    if name in ("hook_resid_mid", "hook_mlp_in"):
        return Place(Site(_norm_before_mlp(network, hook, layer).path, "in"))
    if name == "ln2.hook_normalized":
        return _normalised(network, hook, layer)
    return Place(find_sites(network, hook)[0])


def module_path(site: Site) -> str:
    """`model.layers.3.mlp:in` as `model.layers.3.mlp.input`, the way other libraries write paths.

    One of several inputs or outputs, or one call of many, has no such way: it keeps its name here.
    """
    plain = {Site(site.module, "in"): "input", Site(site.module): "output"}
    return f"{site.module}.{plain[site]}" if site in plain else str(site)


def _by_path(network: Network, hook: str) -> Site:
    path, colon, port = hook.partition(":")
    if not colon and path.rpartition(".")[2] in ("input", "output"):
        path, _, port = path.rpartition(".")
        port = {"input": "in", "output": "out"}[port]
    known = {n for n, _ in network.module.named_modules(remove_duplicate=False) if n}
    prefix = getattr(network.module, "base_model_prefix", "")
    for full in (path, f"{prefix}.{path}"):
        if full in known:
            return Site(full, port or "out")
    raise UnknownName.among(
        f"hook of {network.name}", hook, sorted(known), "A hook is a TransformerLens name or a module's path."
    )


def _heads(network: Network, hook: str, layer: int) -> Site:
    """The heads' results side by side: what attention's own last matrix product reads."""
    part = next((p for p in network.parts() if p.name == f"attn.{layer}"), None)
    found = None if part is None else network.neurons(part)
    if found is None:
        raise _untranslatable(network, hook, f"attn.{layer} does not end in one matrix product that can be found")
    return found.site


class _Norm(NamedTuple):
    """The norm before a block's MLP, and what it was given and made on the example batch."""

    path: str
    given: Tensor
    made: Tensor
    stream: Tensor
    """What the block was given."""

    @property
    def is_beside(self) -> bool:
        """True where attention and MLP run side by side: both read the block's input."""
        return _equal(self.given, self.stream)


_NORMS: WeakKeyDictionary[Network, dict[int, _Norm]] = WeakKeyDictionary()


def norms(network: Network) -> dict[int, _Norm]:
    """By layer: the block's child whose output is what the MLP reads. All layers in one forward pass, once."""
    if network not in _NORMS:
        blocks = {p: p.replaces[0].rpartition(".")[0] for p in network.parts() if p.name.startswith("mlp.")}
        children = {p: list(_gains(network, block)) for p, block in blocks.items()}
        sites = [Site(path, port) for paths in children.values() for path in paths for port in ("in", "out")]
        sites += [site for p, block in blocks.items() for site in (p.read, Site(block, "in"))]
        values = network.record(network.example(), sites) if sites else {}
        _NORMS[network] = {
            int(p.name.rpartition(".")[2]): _Norm(
                path, values[Site(path, "in")], values[Site(path)], values[Site(blocks[p], "in")]
            )
            for p, paths in children.items()
            for path in paths
            if _equal(values[Site(path)], values[p.read])
        }
    return _NORMS[network]


def _gains(network: Network, block: str) -> Iterator[str]:
    """Children of a block that have a gain and no matrix."""
    for name, child in network.module.get_submodule(block).named_children():
        if (own := list(child.parameters())) and all(p.dim() == 1 for p in own):
            yield f"{block}.{name}"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _norm_before_mlp(network: Network, hook: str, layer: int) -> _Norm:
    norm = norms(network).get(layer)
    if norm is None:
        known = any(p.name == f"mlp.{layer}" for p in network.parts())
        why = "no norm was found whose output the MLP reads" if known else f"{network.name} has no part mlp.{layer}"
        raise _untranslatable(network, hook, why)
    if hook.endswith("hook_resid_mid") and norm.is_beside:
        raise _untranslatable(network, hook, "attention and MLP run side by side, so there is no stream between them")
    return norm


def _normalised(network: Network, hook: str, layer: int) -> Place:
    path, given, made, _ = _norm_before_mlp(network, hook, layer)
    norm = network.module.get_submodule(path)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    x, y = given.double(), made.double()
    if isinstance(weight, Tensor):
        eps = float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-5)))
        center = torch.zeros_like(weight) if bias is None else bias
        half = torch.finfo(weight.dtype).eps > 1e-5
        # LayerNorm subtracts the mean, RMSNorm does not; some families store the gain less 1.
        for less in (0.0, 1.0):
            for h in (x, x - x.mean(-1, keepdim=True)):
                normed = h / (h.square().mean(-1, keepdim=True) + eps).sqrt()
                wanted = normed * (weight.double() + less) + center.double()
                if (wanted - y).abs().max() <= (2e-2 if half else 1e-4) * y.abs().max():
                    return _without_gain(network, hook, Site(path), weight.float() + less, center.float())
    raise _untranslatable(network, hook, f"{path} is no norm whose gain can be taken off")


def _without_gain(network: Network, hook: str, site: Site, gain: Tensor, center: Tensor) -> Place:
    if bool((gain.abs() < 1e-6 * gain.abs().max()).any()):
        raise _untranslatable(
            network, hook, f"the gain of {site.module} is 0 in places, which hides what came before it"
        )
    return Place(site, center, gain)


def _untranslatable(network: Network, hook: str, why: str) -> UnknownName:
    return UnknownName(
        f"the hook {hook!r} cannot be translated for {network.name}: {why}. Write the module's path with :in or :out "
        f"in the dictionary's own configuration instead; `understudy sites {network.name}` lists short names."
    )
