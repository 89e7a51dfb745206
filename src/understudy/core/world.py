"""World: a network whose mechanism is known, because it was planted, with the truth that methods are scored against.

What organisms and controls return. Truth is plain data: features with their directions, edges between them, and facts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.batch import Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.metric import Measured
from understudy.core.site import Site

Z95 = 1.959964


@dataclass(frozen=True)
class TrueFeature:
    """Something the network really represents, and where."""

    name: str
    """Unique in its world, e.g. `count=3`."""
    sites: tuple[Site, ...]
    """Every site where it is present along `direction`; the first is where it is written."""
    direction: Float[Tensor, " d"]
    """What one unit of it adds at these sites."""
    role: Literal["feature", "neuron", "output"] = "feature"
    """`neuron`: a hidden unit that computes others; `output`: an output; their directions are axes."""

    @property
    def site(self) -> Site:
        return self.sites[0]


@dataclass(frozen=True)
class TrueEdge:
    """One feature computes another."""

    source: str
    target: str
    weight: float
    """How much one unit of the source adds to the target, before the target's own nonlinearity; through attention, at
    a pattern of 1. Its sign is the edge's sign; 0 in a contracted truth where paths of both signs meet."""
    via: str = ""
    """The module that carries it, e.g. `blocks.0.attn`."""
    path: Literal["value", "query", "key", "weight"] = "weight"
    """`query` and `key` decide where attention looks, and are frozen where patterns are."""


@dataclass(frozen=True)
class Truth:
    """What was planted. Empty in a negative twin."""

    features: tuple[TrueFeature, ...] = ()
    edges: tuple[TrueEdge, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that are not features: the trigger, the code in use, key frequencies."""
    values: Callable[[Batch], Float[Tensor, "batch *places n_features"]] | None = None
    """How much of each feature is truly there at each place; from the plan, not from the network."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    def feature(self, name: str) -> TrueFeature:
        """Raises UnknownName."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UnknownName.among("true feature", name, self.names)

    def at(self, site: Site) -> tuple[TrueFeature, ...]:
        """The features that are present at a site."""
        return tuple(f for f in self.features if site in f.sites)

    def directions(self, site: Site) -> Float[Tensor, "n d"]:
        """What one unit of each feature adds at a site. Raises BadInput where none is present."""
        found = self.at(site)
        if not found:
            sites = ", ".join(dict.fromkeys(str(f.site) for f in self.features)) or "none"
            raise BadInput(f"no true feature is present at {site}; there are some at {sites}.")
        return torch.stack([f.direction for f in found])

    def contract(self, keep: Collection[str], *, paths: Collection[str] = ("value", "weight")) -> tuple[TrueEdge, ...]:
        """Edges among some features only: those left out become part of the paths between the others.

        paths: the kinds of edges that count; queries and keys do not by default, as in a graph with frozen patterns.
        An edge's weight is the product along a path of one sign, summed over paths; 0 where both signs meet.
        """
        keep = set(keep)
        out: dict[str, list[TrueEdge]] = {}
        for edge in self.edges:
            if edge.path in paths:
                out.setdefault(edge.source, []).append(edge)
        found: dict[tuple[str, str], list[float]] = {}

        def walk(start: str, at: str, weight: float) -> None:
            for edge in out.get(at, ()):
                if edge.target in keep:
                    found.setdefault((start, edge.target), []).append(weight * edge.weight)
                else:
                    walk(start, edge.target, weight * edge.weight)

        for name in self.names:
            if name in keep:
                walk(name, name, 1.0)
        return tuple(
            TrueEdge(a, b, sum(w) if min(w) > 0 or max(w) < 0 else 0.0, "contracted") for (a, b), w in found.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data for truth.json; `values` is code and is left out."""
        return {
            "features": [
                {"name": f.name, "role": f.role, "sites": [str(s) for s in f.sites], "direction": f.direction.tolist()}
                for f in self.features
            ],
            "edges": [vars(e) for e in self.edges],
            "facts": dict(self.facts),
        }


class CheckResult(NamedTuple):
    """One sign of a world's health."""

    name: str
    figure: Measured
    mark: str
    """What it takes to pass, e.g. `>= 1`."""
    passed: bool


@dataclass(frozen=True)
class Check:
    """A figure about a world itself, and the mark it must reach for the world to be used as truth."""

    name: str
    measure: Callable[[], Measured]
    at_least: float | None = None
    at_most: float | None = None
    around: float | None = None
    """A value that the interval must hold, e.g. chance."""

    def run(self) -> CheckResult:
        figure = self.measure()
        if self.at_least is not None:
            return CheckResult(self.name, figure, f">= {self.at_least:g}", figure.value >= self.at_least)
        if self.at_most is not None:
            return CheckResult(self.name, figure, f"<= {self.at_most:g}", figure.value <= self.at_most)
        assert self.around is not None
        return CheckResult(self.name, figure, f"~ {self.around:g}", figure.low <= self.around <= figure.high)


@dataclass(frozen=True)
class World:
    """A network, what it runs on, what is true of it, and how to see that it is."""

    name: str
    planted: str
    """One line: the mechanism."""
    network: Network
    data: Mapping[str, Sequences]
    """At least "train" and "held_out"; other splits are named by the world."""
    truth: Truth
    checks: tuple[Check, ...] = ()
    twin: Callable[[], "World"] | None = None
    """Makes the negative twin; None for a twin itself."""

    @cached_property
    def negative(self) -> "World | None":
        """The same without the mechanism: whatever is found in it is a false alarm. Made when first asked for."""
        with torch.random.fork_rng(devices=[]):
            return None if self.twin is None else self.twin()

    def health(self) -> list[CheckResult]:
        """Every check, run now."""
        return [check.run() for check in self.checks]

    def __repr__(self) -> str:
        t = self.truth
        return f"World({self.name!r}: {self.planted}; {len(t.features)} true features, {len(t.edges)} true edges)"


def share(hits: int, n: int, unit: str = "fraction") -> Measured:
    """hits / n with Wilson's 95% interval. Source: Wilson 1927, eq. 5 as in Agresti and Coull 1998."""
    p, z2 = hits / n, Z95**2
    middle, half = (p + z2 / (2 * n)) / (1 + z2 / n), Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and at n the closed form meets the edge only to rounding.
    return Measured(value=p, low=min(p, max(0.0, middle - half)), high=max(p, min(1.0, middle + half)), unit=unit, n=n)


def mean(values: Float[Tensor, " n"], unit: str) -> Measured:
    """Mean of independent values with its normal 95% interval; at least 2 of them."""
    n, x = len(values), values.double()
    half = Z95 * float(x.std()) / sqrt(n)
    return Measured(value=float(x.mean()), low=float(x.mean()) - half, high=float(x.mean()) + half, unit=unit, n=n)
