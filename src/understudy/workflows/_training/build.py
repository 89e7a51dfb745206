"""From kind and site patterns to groups, started on a sample of activations."""

from fnmatch import fnmatchcase
from typing import NamedTuple

from understudy import dictionaries as shelf_of_kinds
from understudy.core.dictionary import Acts, Group
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_parts, find_sites
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.site import Site
from understudy.dictionaries.components import is_linear
from understudy.workflows._training.naming import named, shelf
from understudy.workflows._training.rules import MakeRule

KINDS = shelf(shelf_of_kinds, LinearDictionary, "kind")
"""By name, for training and loading."""


class Plan(NamedTuple):
    """What will be trained at which sites: for each group, (reads, writes) of each member."""

    kind: type[LinearDictionary]
    groups: list[list[tuple[tuple[Site, ...], tuple[Site, ...]]]]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(s for g in self.groups for reads, writes in g for s in (*reads, *writes)))


def plan(network: Network, kind: str, patterns: str) -> Plan:
    """One dictionary a match, or one group over all matches, as the kind `spans` them. Raises UnknownName, BadInput."""
    cls = named("kind of dictionary", kind, KINDS, LinearDictionary)
    if cls.spans in ("site", "sites"):
        sites = find_sites(network, patterns)
        if cls.spans == "site":
            return Plan(cls, [[((s,), (s,))] for s in sites])
        if len(sites) == 1:
            raise BadInput(f"a {cls.kind} spans several sites; {patterns!r} matches only {sites[0]}.")
        return Plan(cls, [[(sites, sites)]])
    if cls.spans == "linears":
        return Plan(cls, [[((Site(m, "in"),), (Site(m),)) for m in linears(network, patterns)]])
    parts = find_parts(network, patterns)
    if cls.spans == "part":
        return Plan(cls, [[((p.read,), (p.write,))] for p in parts])
    return Plan(cls, [[((p.read,), tuple(q.write for q in parts[i:])) for i, p in enumerate(parts)]])


def linears(network: Network, patterns: str) -> tuple[str, ...]:
    """Paths of Linears in the order of the network's modules: by path or glob, or all that lie in a module or part so
    named. Raises UnknownName, BadInput."""
    every = [path for path, module in network.module.named_modules() if is_linear(module)]
    found: set[str] = set()
    for text in filter(None, (text.strip() for text in patterns.split(","))):
        parts = [m for p in network.parts() if text in (p.name, p.name.rpartition(".")[0]) for m in p.replaces]
        matched = {path for path in every for m in (text, *parts) if fnmatchcase(path, m) or path.startswith(f"{m}.")}
        if not matched:
            raise UnknownName.among(f"Linear of {network.name}", text, every, "Components are parts of a Linear.")
        found |= matched
    if not found:
        raise BadInput(f"{patterns!r} names no Linear of {network.name}: give the path of one, of: {', '.join(every)}.")
    return tuple(path for path in every if path in found)


def build(network: Network, plan: Plan, n_latents: int, make: MakeRule, sample: Acts, seed: int) -> list[Group]:
    """Groups at their starting point. `sample`: rows at every site of the plan."""
    groups = []
    for i, members in enumerate(plan.groups):
        started = []
        for j, (reads, writes) in enumerate(members):
            rule = make(*(sum(sample[s].shape[-1] for s in sites) for sites in (reads, writes)))
            own = seed + 7919 * i + 104729 * j
            started.append(plan.kind.begin(network, reads, writes, n_latents, rule, sample, own))
        groups.append(plan.kind.group(started, sample))
    return groups
