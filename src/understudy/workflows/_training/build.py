"""From kind and site patterns to groups, started on a sample of activations."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from understudy.core.dictionary import Acts, Group, Sparsity
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_parts, find_sites
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Crosscoder, Transcoder, clt_group

KINDS = {c.kind: c for c in (SAE, Transcoder, Crosscoder, CLTLayer)}
"""By name, for loading."""


class Plan(NamedTuple):
    """What will be trained at which sites: for each group, (reads, writes) of each member."""

    kind: str
    groups: list[list[tuple[tuple[Site, ...], tuple[Site, ...]]]]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(s for g in self.groups for reads, writes in g for s in (*reads, *writes)))


def plan(network: Network, kind: str, patterns: str) -> Plan:
    """One dictionary a match for sae and transcoder, one over all for crosscoder, one group for clt."""
    if kind not in KINDS:
        raise UnknownName.among("kind of dictionary", kind, KINDS)
    if kind in ("sae", "crosscoder"):
        sites = find_sites(network, patterns)
        if kind == "crosscoder" and len(sites) == 1:
            raise BadInput(f"a crosscoder spans several sites; {patterns!r} matches only {sites[0]}.")
        return Plan(kind, [[((s,), (s,))] for s in sites] if kind == "sae" else [[(sites, sites)]])
    parts = find_parts(network, patterns)
    if kind == "transcoder":
        return Plan(kind, [[((p.read,), (p.write,))] for p in parts])
    return Plan(kind, [[((p.read,), tuple(q.write for q in parts[i:])) for i, p in enumerate(parts)]])


def build(plan: Plan, n_latents: int, sparsity: Callable[[], Sparsity], sample: Acts, seed: int) -> list[Group]:
    """Groups at their starting point. `sample`: rows at every site of the plan."""
    kind = KINDS[plan.kind]
    groups = []
    for i, members in enumerate(plan.groups):
        started: Sequence[LinearDictionary] = [
            kind.start(reads, writes, n_latents, sparsity(), sample, seed + 7919 * i + 104729 * j)
            for j, (reads, writes) in enumerate(members)
        ]
        clt = [d for d in started if isinstance(d, CLTLayer)]
        groups.append(clt_group(clt, sample) if clt else Group(started))
    return groups
