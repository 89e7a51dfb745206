"""`understudy exam`."""

from typing import Any

from rich.console import Group
from rich.table import Table

from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import Progress
from understudy.workflows.exam import Exam, exam
from understudy.workflows.exam import ExamConfig as Config


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    done = exam(config, progress)
    tables = {"features": _features, "edges": _edges, "graphs": _graphs, "backdoor": _defences}
    table = (tables | {"unlearning": _unlearned})[done.about](done)
    notes = [f"LOST since the last exam: {text}" for text in done.lost]
    notes += [f"{r.organism}, {r.size} of {r.of}: {r.note}" for r in done.graphs if r.note]
    notes += [f"{r.organism}: {r.note}" for r in done.edges if r.note]
    return done.model_dump(mode="json"), Group(table, *notes, f"{len(table.rows)} rows in {done.wall_s:.0f} s")


def _features(done: Exam) -> Table:
    table = _table("organism", "method", "site", "alive", "truth recovered", "precision")
    for row in done.rows:
        alive = f"{row.alive} of {row.n_latents}"
        table.add_row(row.organism, row.method, row.site, alive, _short(row.truth_recovered), _short(row.precision))
    return table


def _edges(done: Exam) -> Table:
    table = _table("organism", "method", "planted", "pairs", "scored", "AUROC", "precision")
    for row in done.edges:
        counts = (str(row.true), str(row.pairs), "-" if row.scored is None else str(row.scored))
        table.add_row(row.organism, row.method, *counts, _short(row.auroc), _short(row.precision))
    return table


def _unlearned(done: Exam) -> Table:
    """The network as it is, the chosen doses and the twin. Planted answers, then true ones."""
    asked = ("unlearned", "other", "untold", "language")
    table = _table("organism", "by", "dose", *asked, "control", "loss", "relearned", "untaught")
    for row in done.unlearned:
        if row.chosen or row.method in ("network", "twin"):
            shares = (f"{_value(row.planted[k])} / {_value(row.true[k])}" for k in asked)
            rest = map(_value, (row.control, row.loss, row.relearned, row.untaught))
            table.add_row(row.organism, row.method, str(row.dose), *shares, *rest)
    return table


def _graphs(done: Exam) -> Table:
    table = _table("organism", "nodes", "kept", "divergence", "of random", "random - graph", "graph is")
    for row in done.graphs:
        figures = (_value(row.graph), _value(row.random), _short(row.than_random, 3))
        table.add_row(row.organism, row.nodes, f"{row.size} of {row.of}", *figures, row.verdict)
    return table


def _defences(done: Exam) -> Table:
    table = _table("defence", "budget", "dose", "clean loss +", "attack", "attack - graph's", "loss after trigger")
    assert done.defences is not None
    alone = [r for r in done.defences.doses if r.defence in ("network", "clean twin", "errors kept")]
    for row in [*alone, *done.defences.chosen]:
        budget = "" if row.budget is None else f"{row.budget:g}"
        than = "" if isinstance(row.than_graph, NotMeasured) else _short(row.than_graph)
        rest = (_short(row.delta_loss, 3), _short(row.attack), than, _short(row.after_trigger))
        table.add_row(row.defence, budget, row.dose, *rest)
    return table


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)


def _value(figure: Metric) -> str:
    return str(figure) if isinstance(figure, NotMeasured) else f"{figure.value:.3g}"


def _short(figure: Metric, digits: int = 2) -> str:
    if isinstance(figure, NotMeasured):
        return str(figure)
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
