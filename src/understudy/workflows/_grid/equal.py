"""Rules at equal L0: the table of a frontier, from runs on the same resamples."""

from collections.abc import Mapping, Sequence

from understudy.core.records.frontier import AtL0, Point
from understudy.core.records.metric import Measured, Metric, NotMeasured
from understudy.metrics import Bootstrap
from understudy.workflows._grid.draws import FIGURES, Drawn, Draws, at_l0, chord_error, figure, mean_over_seeds
from understudy.workflows._grid.measure import FORMS

Forms = Mapping[str, Sequence[Drawn]]
"""Every cell's figures by form. A rule under which latents do not compete has one form, and stands for itself in both.
"""


def points(forms: Forms, bootstrap: Bootstrap) -> list[Point]:
    """A row for each run and form."""
    absent = NotMeasured(not_measured="this kind cannot run in the network's place, or the network has no loss")
    out = []
    for form, runs in forms.items():
        for r in runs:
            values = {
                what: figure(r.values[what], unit, bootstrap) for what, unit in FIGURES.items() if what in r.values
            }
            out.append(
                Point(
                    run=r.cell.name, form=form, rule=r.cell.rule, level=r.cell.level, seed=r.cell.seed, lr=r.cell.lr,
                    l0=figure(r.l0, "latents", bootstrap), dead=r.dead,
                    **({"delta_loss": absent} | values),
                )
            )  # fmt: skip
    return out


def at_equal_l0(forms: Forms, rules: Sequence[str], l0s: Sequence[float], bootstrap: Bootstrap) -> list[AtL0]:
    """Every rule at every L0: its value, and how far above the lowest rule's it lies, in all seeds and in each."""
    out = []
    for form in FORMS:
        for what, unit in FIGURES.items():
            for l0 in l0s:
                by_rule = {rule: _by_seed(_in_form(forms, form, rule), l0, what) for rule in rules}
                out += _compared(form, what, unit, l0, by_rule, bootstrap)
    return out


def _in_form(forms: Forms, form: str, rule: str) -> list[Drawn]:
    own = [r for r in forms[form] if r.cell.rule == rule]
    return own or [r for r in forms["thresholds"] if r.cell.rule == rule]


def _by_seed(runs: Sequence[Drawn], l0: float, what: str) -> list[Draws | NotMeasured]:
    seeds = sorted({r.cell.seed for r in runs})
    found = [at_l0([r for r in runs if r.cell.seed == seed], l0, what) for seed in seeds]
    return found or [NotMeasured(not_measured="no run ended")]


def _compared(
    form: str, what: str, unit: str, l0: float, by_rule: Mapping[str, list[Draws | NotMeasured]], bootstrap: Bootstrap
) -> list[AtL0]:
    means = {rule: mean_over_seeds(found) for rule, found in by_rule.items()}
    known = {rule: m for rule, m in means.items() if not isinstance(m, NotMeasured) and m[0] == m[0]}
    best = min(known, key=lambda rule: known[rule][0]) if known else None
    out = []
    for rule, mean in means.items():
        beyond: Metric = NotMeasured(not_measured="not measured at this L0")
        by_seed = []
        if best is not None and rule in known:
            beyond = figure(known[rule] - known[best], unit, bootstrap)
            pairs = zip(by_rule[rule], by_rule[best], strict=False)
            by_seed = [float(a[0] - b[0]) for a, b in pairs if not isinstance(a, NotMeasured | type(None)) and not
                       isinstance(b, NotMeasured)]  # fmt: skip
        out.append(
            AtL0(
                form=form, what=what, l0=l0, rule=rule, value=figure(mean, unit, bootstrap), beyond_best=beyond,
                by_seed=by_seed,
            )
        )  # fmt: skip
    return out


def worst_chord(forms: Forms, rules: Sequence[str]) -> Metric:
    """The largest miss of a chord over two steps, of FVU in use; exact, as it is about these runs."""
    missed, runs = [], forms["thresholds"]
    for rule in rules:
        for seed in {r.cell.seed for r in runs}:
            missed += chord_error([r for r in runs if (r.cell.rule, r.cell.seed) == (rule, seed)], "fvu")
    if not missed:
        return NotMeasured(not_measured="no rule has three runs of one seed")
    worst = max(map(abs, missed))
    return Measured(value=worst, low=worst, high=worst, unit="fraction", n=len(missed))
