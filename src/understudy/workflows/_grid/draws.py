"""From sums to figures: every run on the same resamples of documents, and rules at one measured L0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from understudy.core.records.metric import Metric, NotMeasured
from understudy.metrics import Bootstrap
from understudy.workflows._grid.cells import Cell
from understudy.workflows._grid.measure import Sums

Draws = Float[np.ndarray, " draws"]
FIGURES = {"fvu": "fraction", "delta_loss": "nats"}
REACH = 0.1
"""How far beyond its sparsest or densest run a rule is still read off, as a share of L0."""


@dataclass(frozen=True)
class Drawn:
    """A cell's figures in each resample; entry 0 is the data as they are."""

    cell: Cell
    l0: Draws
    values: Mapping[str, Draws]
    """`fvu` and, where it was run in the network's place, `delta_loss`."""
    dead: float = 0.0
    """Share of latents that are on nowhere."""


def drawn(cell: Cell, sums: Sums, bootstrap: Bootstrap) -> Drawn:
    n = sums.reconstruction.n
    l0 = bootstrap.draws(lambda active, n: active / n, active=sums.active, n=n)
    values = {"fvu": sums.reconstruction.fvu_draws(bootstrap)}
    if sums.loss is not None and sums.clean is not None and sums.scored is not None:
        extra = bootstrap.draws(lambda extra, n: extra / n, extra=sums.loss - sums.clean, n=sums.scored)
        values["delta_loss"] = extra
    return Drawn(cell, l0, values, float((sums.fires == 0).mean()))


def at_l0(runs: Sequence[Drawn], l0: float, what: str) -> Draws | NotMeasured:
    """A figure of one rule and seed at an L0 between two of its runs: log figure is linear in log L0 between them.

    Measured L0 counts, in every resample anew, never the one that was asked for. NotMeasured beyond the sparsest and
    the densest run by more than a tenth, and with fewer than 2 runs.
    """
    known = sorted((r for r in runs if what in r.values), key=lambda r: r.l0[0])
    if len(known) < 2:
        return NotMeasured(not_measured=f"{len(known)} runs; a figure at equal L0 lies between 2")
    lowest, highest = known[0].l0[0], known[-1].l0[0]
    if not lowest / (1 + REACH) <= l0 <= highest * (1 + REACH):
        return NotMeasured(not_measured=f"its runs have an L0 of {lowest:.1f} to {highest:.1f}")
    i = int(np.clip(np.searchsorted([r.l0[0] for r in known], l0), 1, len(known) - 1))
    return between(known[i - 1], known[i], l0, what)


def between(a: Drawn, b: Drawn, l0: float, what: str) -> Draws:
    """On the chord through two runs in log L0 and log figure; NaN where a figure is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.log(l0) - np.log(a.l0)) / (np.log(b.l0) - np.log(a.l0))
        return np.exp((1 - share) * np.log(a.values[what]) + share * np.log(b.values[what]))


def chord_error(runs: Sequence[Drawn], what: str) -> list[float]:
    """How far each inner run lies from the chord through its neighbours, as a share: reading off spans half of that."""
    known = sorted((r for r in runs if what in r.values), key=lambda r: r.l0[0])
    inner = zip(known, known[1:], known[2:], strict=False)
    return [float(between(a, c, float(b.l0[0]), what)[0] / b.values[what][0] - 1) for a, b, c in inner]


def mean_over_seeds(by_seed: Sequence[Draws | NotMeasured]) -> Draws | NotMeasured:
    """The mean of seeds in each draw; the reason of the first seed that has none."""
    for found in by_seed:
        if isinstance(found, NotMeasured):
            return found
    return np.mean([found for found in by_seed if not isinstance(found, NotMeasured)], axis=0)


def figure(found: Draws | NotMeasured, unit: str, bootstrap: Bootstrap) -> Metric:
    return found if isinstance(found, NotMeasured) else bootstrap.summarise(found, unit, bootstrap.n_units)
