"""Rules at equal L0 as plain data: `understudy ablate --json`, and frontier.json."""

from pydantic import Field

from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.summary import figure, table

FORMS = {
    "thresholds": "as they are used, with a threshold for each latent",
    "trained": "under the rules they were trained with",
}
WHAT = {"fvu": "fraction of variance unexplained", "delta_loss": "excess loss, nats per place"}


class Point(Record):
    """One run in one form."""

    run: str
    """Its folder in cells/; `understudy evaluate` takes it."""
    form: str
    """A key of `FORMS`; rules under which latents do not compete are the same in both, and stand under thresholds."""
    rule: str
    level: float
    """k, the L0 aimed at, or the weight of the L1 penalty."""
    seed: int
    lr: float
    l0: Metric
    fvu: Metric
    delta_loss: Metric
    dead: float
    """Share of latents that are silent at all judged places."""


class AtL0(Record):
    """A rule at one L0: read off between its runs by their measured L0, mean over seeds."""

    form: str
    what: str
    """A key of `WHAT`."""
    l0: float
    rule: str
    value: Metric
    beyond_best: Metric
    """Minus the lowest rule's value at this L0, paired over documents; exactly 0 for that rule itself."""
    by_seed: list[float] = Field(default_factory=list)
    """The same in each seed."""

    @property
    def verdict(self) -> str:
        """`best`; `worse` where the interval excludes 0 and every seed agrees, else `undecided`."""
        d = self.beyond_best
        if isinstance(d, NotMeasured):
            return "not measured"
        if d.value == d.low == d.high == 0:
            return "best"
        return "worse" if d.low > 0 and min(self.by_seed, default=1) > 0 else "undecided"


class Rate(Record):
    """What learning rates were tried for a rule, and the one its runs have."""

    rule: str
    losses: dict[str, float | None]
    """By factor on the recipe's rate: the loss it trained on, on sequences no figure rests on; None: no number."""
    factor: float
    is_edge: bool
    """True if the best was the lowest or the highest that was tried: a better one may lie beyond."""


class Frontier(Record):
    """Which rule is best at equal L0 and equal places of training."""

    network: str
    site: str
    kind: str
    data: str
    n_latents: int
    places: int
    """Places each run was trained on."""
    sequences: int
    units: int
    """Documents the intervals rest on."""
    seeds: int
    rules: list[str]
    points: list[Point]
    at: list[AtL0]
    rates: list[Rate] = Field(default_factory=list)
    """Empty: every rule was trained at the recipe's own rate."""
    chord: Metric = NotMeasured(not_measured="no rule has three runs of one seed")
    """Largest distance of a run from the chord through its neighbours, as a share of its FVU: what is read off at an
    L0 between runs spans half as far."""
    notes: list[str] = Field(default_factory=list)

    def rows(self, form: str, what: str, l0: float) -> list[AtL0]:
        """Rules at one L0, best first, those without a figure last."""
        found = [a for a in self.at if (a.form, a.what, a.l0) == (form, what, l0)]
        return sorted(found, key=lambda a: a.value.value if isinstance(a.value, Measured) else float("inf"))

    @property
    def l0s(self) -> list[float]:
        return sorted({a.l0 for a in self.at})

    def sentences(self, form: str, what: str) -> list[str]:
        """For each L0, which rule is best and which are not clearly worse."""
        out = []
        for l0 in self.l0s:
            best, *others = self.rows(form, what, l0)
            if not isinstance(best.value, Measured):
                out.append(f"at an L0 of {l0:g} no rule was measured")
                continue
            open_ = [r.rule for r in others if r.verdict == "undecided"]
            clear = [r.rule for r in others if r.verdict == "worse"]
            said = f"at an L0 of {l0:g} {best.rule} is lowest"
            said += f"; clearly above it {_listed(clear)}" if clear else ""
            said += f"; not told apart from it {_listed(open_)}" if open_ else ""
            out.append(said)
        return out

    def __str__(self) -> str:
        lines = [
            f"Rules on {self.site} of {self.network}: {self.kind}, {self.n_latents:,} latents, {self.places:,} places "
            f"each, {self.seeds} seed{'s' if self.seeds != 1 else ''}",
            f"judged on {self.sequences} sequences of {self.data}; intervals are 95%, over {self.units} documents",
        ]
        for form, said in FORMS.items():
            for what, name in WHAT.items():
                if not any(isinstance(a.value, Measured) for a in self.at if (a.form, a.what) == (form, what)):
                    continue
                lines += ["", f"{name}, dictionaries {said}", self._table(form, what)]
                lines += self.sentences(form, what)
        return "\n".join([*lines, "", *self.notes])

    def _table(self, form: str, what: str) -> str:
        by_rule = {rule: {a.l0: a for a in self.at if (a.form, a.what, a.rule) == (form, what, rule)} for rule in
                   self.rules}  # fmt: skip
        rows = [
            [rule, *(_short(found[l0]) if l0 in found else "-" for l0 in self.l0s)]
            for rule, found in by_rule.items()
            if found
        ]
        return table(["rule", *(f"L0 {l0:g}" for l0 in self.l0s)], rows)


def _short(at: AtL0) -> str:
    mark = {"best": " <", "undecided": " ~"}.get(at.verdict, "  ")
    return (figure(at.value, 4) if isinstance(at.value, Measured) else "not measured") + mark


def _listed(names: list[str]) -> str:
    return ", ".join(names)
