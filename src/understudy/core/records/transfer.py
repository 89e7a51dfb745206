"""Which conclusions carry over, as plain data: `understudy transfer --json`, and transfer.json."""

from collections.abc import Sequence
from textwrap import wrap

from pydantic import Field

from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.summary import figure, table

MOST = 0.5
"""Share of a defect that must go for it to be called removed."""
CHANCE = 0.1
"""Share of the defect (or of the smallest one that counts, if that is larger) within which the whole interval of a
control has to lie."""


class ArmFigure(Record):
    """One arm of a claim on one network, at the L0 of the comparison; means over seeds."""

    arm: str
    runs: list[str]
    """Folders of its runs; the figure is read off between them by their measured L0."""
    l0: list[float]
    """What each of them measured, latents a place."""
    defect: Metric
    control: Metric
    """The same figure where there is nothing to find: chance is 0."""
    by_seed: list[float] = Field(default_factory=list)


class Row(Record):
    """One claim on one network."""

    network: str
    site: str
    claim: str
    data: str
    width: int
    n_latents: int
    sequences: int
    units: int
    """Documents, episodes or sequences that the intervals rest on."""
    arms: list[ArmFigure]
    """The one that has the defect, the one that is said to remove it, others beside them."""
    least: float
    """Smallest defect that there is any point in removing."""
    removed: Metric
    """Share of the first arm's defect that the second has not: 1 - |second| / first, paired."""
    removed_by_seed: list[float] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`holds`: more than half is gone, in the whole interval and in every seed; `does not`: less than half, the
        same; `nothing to remove`: the first arm's defect is not clearly above `least`; `control failed`: the figure
        finds something where nothing is; `control too wide`: it may; else `not told apart`."""
        (has, said), removed = self.arms[:2], self.removed
        if any(isinstance(m, NotMeasured) for arm in (has, said) for m in (arm.defect, arm.control)):
            return "not measured"
        assert isinstance(has.defect, Measured)
        near = CHANCE * max(abs(has.defect.value), self.least)
        if any(_is_off(arm.control, near) for arm in (has, said)):
            return "control failed"
        if has.defect.low <= self.least or min(has.by_seed) <= 0:
            return "nothing to remove"
        if not all(_is_near(arm.control, near) for arm in (has, said)):
            return "control too wide"
        if isinstance(removed, NotMeasured):
            return "not measured"
        if removed.low > MOST and min(self.removed_by_seed) > MOST:
            return "holds"
        if removed.high < MOST and max(self.removed_by_seed) < MOST:
            return "does not"
        return "not told apart"

    @property
    def said(self) -> list[str]:
        """Notes, and why a figure is not measured."""
        missing = [(f"{a.arm}", a.defect) for a in self.arms]
        missing += [(f"{a.arm}'s control", a.control) for a in self.arms] + [("share removed", self.removed)]
        why = {m.not_measured: name for name, m in reversed(missing) if isinstance(m, NotMeasured)}
        return [*(f"{name} not measured: {reason}" for reason, name in why.items()), *self.notes]


def _is_off(control: Metric, near: float) -> bool:
    """True where the whole interval of a control lies further than `near` from 0, on one side."""
    return isinstance(control, Measured) and (control.low > near or control.high < -near)


def _is_near(control: Metric, near: float) -> bool:
    """True where the whole interval of a control lies within `near` of 0: a wide one shows nothing."""
    return isinstance(control, Measured) and -near <= control.low and control.high <= near


class ClaimCard(Record):
    """What is claimed, and what is measured for it."""

    name: str
    sentence: str
    defect: str
    definition: str
    unit: str
    source: str
    control: str
    arms: list[str]


class Transfer(Record):
    """Every claim on every network, under one protocol."""

    claims: list[ClaimCard]
    rows: list[Row]
    l0: float
    """Latents a place at which arms are compared, measured."""
    width: float
    """Latents over the width of the site."""
    places: int
    """Places each run was trained on."""
    seeds: int

    def of(self, claim: str) -> list[Row]:
        return [r for r in self.rows if r.claim == claim]

    def __str__(self) -> str:
        seeds = f"{self.seeds} seed{'s' if self.seeds != 1 else ''}"
        lines = [
            f"SAEs of {self.width:g} x the site's width, {self.places:,} places each, {seeds}, compared at a measured "
            f"L0 of {self.l0:g}; intervals are 95%, over documents, episodes or images"
        ]
        for claim in self.claims:
            lines += ["", claim.sentence, *wrap(f"{claim.defect}: {claim.definition}", 120)]
            lines += [_table(claim, self.of(claim.name))]
        return "\n".join([*lines, "", *(f"{r.network}, {r.claim}: {said}" for r in self.rows for said in r.said)])


def _table(claim: ClaimCard, rows: Sequence[Row]) -> str:
    return table(["network", *claim.arms, "removed", "controls", "verdict"], [_cells(r) for r in rows])


def _cells(row: Row) -> list[str]:
    controls = " ".join(f"{a.control.value:.3f}" if isinstance(a.control, Measured) else "-" for a in row.arms[:2])
    defects = [_short(a.defect) for a in row.arms]
    return [f"{row.network} {row.site}", *defects, _short(row.removed, 2), controls, row.verdict]


def _short(metric: Metric, digits: int = 3) -> str:
    return figure(metric, digits) if isinstance(metric, Measured) else "not measured"
