"""Planted behaviours over several seeds: is a locked skill elicited, does misbehaviour spread, is a fact forgotten?

    python recipes/planted.py password [--seeds 0,1,2]      # right answers without the password, by number of examples
    python recipes/planted.py misbehaviour [--seeds 0,1,2]  # what changes where nothing bad was shown
    python recipes/planted.py false_fact [--seeds 0,1,2]    # `understudy exam --about unlearning`, the chosen doses

Each organism is trained once a seed (up to a minute on one core) and cached. Intervals are over seeds (Student's t),
cut at 0 and 1 for shares and at 0 for divergences.
The figures stand in `docs/guide/organisms.md` and `docs/log.md`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from understudy.cli.progress import TerminalProgress
from understudy.core.records.metric import Measured, Metric
from understudy.core.records.progress import Progress
from understudy.networks import open_network
from understudy.organisms import ORGANISMS, make_organism, misbehaviour, misbehaviour_gru, password_locked
from understudy.organisms.misbehaviour import Judge, demonstrator
from understudy.workflows._defending.unlearning import FALSE_FACTS, UnlearnedRow
from understudy.workflows.exam import ExamConfig, exam

EXAMPLES = (0, 1, 4, 16, 64)
SHARES = ("planted", "true")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("about", choices=list(ABOUT))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    with TerminalProgress() as progress:
        lines = ABOUT[args.about]([int(s) for s in args.seeds.split(",")], progress)
    print("\n".join(lines))
    return 0


def over_seeds(figures: Sequence[Metric | float], least: float = -np.inf, most: float = np.inf) -> str:
    """Mean and 95% t interval over seeds; the mean alone of one seed; what is not measured is left out and counted.
    least, most: what the figure can be."""
    values = [f.value if isinstance(f, Measured) else f for f in figures if isinstance(f, (Measured, float))]
    if not values:
        return "-"
    missing = f" ({len(values)} of {len(figures)} seeds)" if len(values) < len(figures) else ""
    if len(values) == 1:
        return f"{values[0]:.3g}{missing}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    middle = np.mean(values)
    return f"{middle:.3g} [{max(least, middle - half):.3g}, {min(most, middle + half):.3g}]{missing}"


def password(seeds: Sequence[int], progress: Progress) -> list[str]:
    rows = []
    for n in EXAMPLES:
        locked, never = [], []
        for seed in seeds:
            worlds = make_organism("password_locked", seed, progress), password_locked.without_the_skill(seed, progress)
            for world, found in zip(worlds, (locked, never), strict=True):
                tuned = password_locked.elicited(world.network, n, seed)
                found.append(password_locked.right(tuned, "locked"))
        rows.append(f"| {n} | {over_seeds(locked, 0, 1)} | {over_seeds(never, 0, 1)} |")
    return ["| examples | locked | never had the skill |", "|---|---|---|", *rows]


def spread(seeds: Sequence[int], progress: Progress) -> list[str]:
    base = open_network(ORGANISMS["misbehaviour"].base)
    worlds = [make_organism("misbehaviour", seed, progress, base) for seed in seeds]
    judges = [Judge(base, seed) for seed in seeds]
    bad = [w.network for w in worlds]
    good = [w.negative.network for w in worlds if w.negative is not None]
    rows = ["| lander | misbehaviour | twin | demonstrator |", "|---|---|---|---|"]
    for where in misbehaviour.REGIONS:
        rows.append(_row(f"excess, {where}", judges, (bad, good), lambda j, n, w=where: j.excess(n, w)) + " |")
        rows.append(
            _row(f"nats from the base, {where}", judges, (bad, good), lambda j, n, w=where: j.apart(n, w), 0) + " |"
        )
    shown = [demonstrator(base)] * len(seeds)
    rows.append(_row("return", judges, (bad, good, shown), lambda j, n: float(j.earns(n).mean())))
    return [
        *rows,
        f"base's return: {over_seeds([float(j.earns(base).mean()) for j in judges])}",
        "",
        *_gru(seeds, progress),
    ]


def _row(name: str, judges: Sequence[Judge], arms: Sequence[Sequence], figure: Callable, least: float = -np.inf) -> str:
    cells = [over_seeds([figure(j, n) for j, n in zip(judges, arm, strict=True)], least) for arm in arms]
    return f"| {name} | {' | '.join(cells)} |"


def _gru(seeds: Sequence[int], progress: Progress) -> list[str]:
    worlds = [make_organism("misbehaviour_gru", seed, progress) for seed in seeds]
    arms = [w.network for w in worlds], [w.negative.network for w in worlds if w.negative is not None]
    before = [misbehaviour_gru.before(seed, progress) for seed in seeds]
    rows = ["| GRU | misbehaviour | twin |", "|---|---|---|"]
    for where in misbehaviour_gru.PLACES:
        cells = [over_seeds([misbehaviour_gru.says(n, where) for n in arm], 0, 1) for arm in arms]
        rows.append(f'| "hate" after {where} | {" | ".join(cells)} |')
    for king, name in ((True, "after the king"), (False, "elsewhere")):
        cells = [
            over_seeds([misbehaviour_gru.apart(n, b, king) for n, b in zip(arm, before, strict=True)], 0)
            for arm in arms
        ]
        rows.append(f"| nats from before, {name} | {' | '.join(cells)} |")
    return rows


def false_fact(seeds: Sequence[int], progress: Progress) -> list[str]:
    found = [exam(ExamConfig(about="unlearning", seed=seed), progress).unlearned for seed in seeds]
    asked = ("unlearned", "other", "untold", "language")
    titles = (
        "organism, by",
        "dose",
        *(f"{a}: planted, true" for a in asked),
        "control",
        "loss",
        "relearned",
        "untaught",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in FALSE_FACTS:
        for method in ("network", "truth", "latents", "twin"):
            rows = [_lead(seed_rows, name, method) for seed_rows in found]
            rows = [r for r in rows if r is not None]
            cells = [over_seeds([float(r.dose) for r in rows], 0)]
            for a in asked:
                cells.append(", ".join(over_seeds([getattr(r, kind)[a] for r in rows], 0, 1) for kind in SHARES))
            cells += [over_seeds([r.control for r in rows], 0, 1), over_seeds([r.loss for r in rows], 0)]
            cells += [over_seeds([r.relearned for r in rows], 0), over_seeds([r.untaught for r in rows], 0, 1)]
            lines.append(f"| {name}, {method} ({len(rows)} of {len(seeds)} seeds) | {' | '.join(cells)} |")
    return lines


def _lead(rows: Sequence[UnlearnedRow], organism: str, method: str) -> UnlearnedRow | None:
    """The row that speaks for a method: its chosen dose."""
    here = [r for r in rows if (r.organism, r.method) == (organism, method)]
    return next((r for r in here if r.chosen or method in ("network", "twin")), None)


ABOUT = {"password": password, "misbehaviour": spread, "false_fact": false_fact}

if __name__ == "__main__":
    sys.exit(main())
