"""`exam`: methods on organisms, scored against the truth, beside ones that know nothing."""

import json
import time
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from understudy.core.records.config import Config
from understudy.core.records.defence import Defences
from understudy.core.records.errors import UnknownName
from understudy.core.records.metric import Measured, Record
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._defending.judged import defend
from understudy.workflows._exam.features import FULL, QUICK, ExamRow, sit
from understudy.workflows._exam.graphs import GRAPHS, GraphRow, graph_rows

BACKDOOR = ("backdoor",)


class ExamConfig(Config):
    """Which papers, and where the results go."""

    about: Literal["features", "graphs", "backdoor"] = "features"
    """features: are the true directions found. graphs: does a graph run better than a random one of its size, at three
    sizes, on every organism. backdoor: does a graph made on clean text remove a backdoor, beside other defences."""
    preset: Literal["quick", "full"] = "quick"
    """Of features. quick: under eight minutes on two quiet cores once the organisms are cached. full: more of them."""
    names: str = ""
    """Only these organisms, separated by commas."""
    seed: NonNegativeInt = 0
    """Decides the organisms and the methods."""
    history: Path | None = None
    """A file that every exam appends one line to, so that a lost mark is seen."""


class Exam(Record):
    """All rows, what was lost since the last line of the history, and how long it took."""

    about: str
    preset: str
    seed: int
    rows: list[ExamRow] = Field(default_factory=list)
    graphs: list[GraphRow] = Field(default_factory=list)
    defences: Defences | None = None
    lost: list[str] = Field(default_factory=list)
    wall_s: float


def exam(config: ExamConfig, progress: Progress = SILENT) -> Exam:
    """Sit every paper. Raises UnknownName for an organism that this exam does not have."""
    names, began = _chosen(config), time.monotonic()
    rows: list[ExamRow] = []
    graphs: list[GraphRow] = []
    defences = None
    if config.about == "features":
        papers = [p for p in _papers(config) if p.organism in names]
        with progress.task("exam", len(papers), "papers") as task:
            for i, paper in enumerate(papers):
                rows += sit(paper, config.seed, progress)
                task.update(i + 1, paper.organism)
    elif config.about == "graphs":
        with progress.task("exam", len(names), "organisms") as task:
            for i, name in enumerate(names):
                graphs += graph_rows(name, config.seed, progress)
                task.update(i + 1, name)
    else:
        defences = defend(config.seed, progress)
    lost = [] if config.history is None else _lost(config.history, rows)
    done = Exam(
        about=config.about, preset=config.preset, seed=config.seed, rows=rows, graphs=graphs, defences=defences,
        lost=lost, wall_s=time.monotonic() - began,
    )  # fmt: skip
    if config.history is not None:
        config.history.parent.mkdir(parents=True, exist_ok=True)
        with config.history.open("a") as f:
            f.write(done.model_dump_json() + "\n")
    return done


def _papers(config: ExamConfig):
    return QUICK if config.preset == "quick" else FULL


def _chosen(config: ExamConfig) -> list[str]:
    """The organisms of this exam, or those that were asked for."""
    known = {
        "features": list(dict.fromkeys(p.organism for p in _papers(config))), "graphs": list(GRAPHS),
        "backdoor": list(BACKDOOR),
    }[config.about]  # fmt: skip
    what = f"organism of the {config.preset} exam" if config.about == "features" else f"organism of `{config.about}`"
    names = [n.strip() for n in config.names.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise UnknownName.among(what, name, known)
    return [n for n in known if not names or n in names]


def _lost(history: Path, rows: list[ExamRow]) -> list[str]:
    """Rows whose interval lies wholly below that of the last exam in the history that has the row."""
    if not history.exists():
        return []
    before = {}
    for line in history.read_text().splitlines():
        before |= {(r["organism"], r["method"], r["site"]): r["truth_recovered"] for r in json.loads(line)["rows"]}
    out = []
    for row in rows:
        old, new = before.get((row.organism, row.method, row.site)), row.truth_recovered
        if old and "low" in old and isinstance(new, Measured) and new.high < old["low"]:
            out.append(f"{row.organism}, {row.method}: {old['value']:.3f} -> {new.value:.3f}")
    return out
