"""`exam`: methods on organisms, scored against the truth, beside ones that know nothing."""

import time
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, ValidationError

from understudy.core.records.config import Config
from understudy.core.records.defence import Defences
from understudy.core.records.errors import BadData, UnknownName
from understudy.core.records.metric import Measured, Metric, Record
from understudy.core.records.progress import SILENT, Progress
from understudy.workflows._defending.judged import defend
from understudy.workflows._defending.unlearning import FALSE_FACTS, UnlearnedRow, unlearned
from understudy.workflows._exam.edges import PROGRAMS, EdgeRow, edge_rows
from understudy.workflows._exam.features import FULL, QUICK, ExamRow, sit
from understudy.workflows._exam.graphs import GRAPHS, GraphRow, graph_rows

BACKDOOR = ("backdoor",)


class ExamConfig(Config):
    """Which papers, and where the results go."""

    about: Literal["features", "edges", "graphs", "backdoor", "unlearning"] = "features"
    """features: are the true directions found. edges: are the planted edges found, on compiled programs. graphs: does a
    graph run better than a random one of its size, at three sizes, on every organism. backdoor: does a graph made on
    clean text remove a backdoor, beside other defences. unlearning: is a false fact that was read last unlearned
    otherwise than one that was mixed over training."""
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
    edges: list[EdgeRow] = Field(default_factory=list)
    graphs: list[GraphRow] = Field(default_factory=list)
    defences: Defences | None = None
    unlearned: list[UnlearnedRow] = Field(default_factory=list)
    lost: list[str] = Field(default_factory=list)
    wall_s: float

    @property
    def marks(self) -> dict[str, Measured]:
        """The lead figure of each row, by what it is of; higher is better."""
        found: dict[str, Metric] = {f"{r.organism}, {r.method} at {r.site}": r.truth_recovered for r in self.rows}
        found |= {f"{r.organism}, edges by {r.method}": r.auroc for r in self.edges}
        found |= {f"{r.organism}, graph of {r.size} of {r.of}": r.than_random for r in self.graphs}
        return {name: figure for name, figure in found.items() if isinstance(figure, Measured)}


def exam(config: ExamConfig, progress: Progress = SILENT) -> Exam:
    """Sit every paper. Raises UnknownName for an organism that this exam does not have."""
    names, began = _chosen(config), time.monotonic()
    done = Exam(about=config.about, preset=config.preset, seed=config.seed, wall_s=0.0)
    if config.about == "features":
        papers = [p for p in _papers(config) if p.organism in names]
        with progress.task("exam", len(papers), "papers") as task:
            for i, paper in enumerate(papers):
                done.rows.extend(sit(paper, config.seed, progress))
                task.update(i + 1, paper.organism)
    elif config.about in ("edges", "graphs"):
        with progress.task("exam", len(names), "organisms") as task:
            for i, name in enumerate(names):
                if config.about == "edges":
                    done.edges.extend(edge_rows(name, config.seed, progress))
                else:
                    done.graphs.extend(graph_rows(name, config.seed, progress))
                task.update(i + 1, name)
    elif config.about == "unlearning":
        done.unlearned.extend(unlearned(names, config.seed, progress))
    else:
        done = done.model_copy(update={"defences": defend(config.seed, progress)})
    lost = [] if config.history is None else _lost(config.history, done)
    done = done.model_copy(update={"lost": lost, "wall_s": time.monotonic() - began})
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
        "features": list(dict.fromkeys(p.organism for p in _papers(config))), "edges": list(PROGRAMS),
        "graphs": list(GRAPHS), "backdoor": list(BACKDOOR), "unlearning": list(FALSE_FACTS),
    }[config.about]  # fmt: skip
    what = f"organism of the {config.preset} exam" if config.about == "features" else f"organism of `{config.about}`"
    names = [n.strip() for n in config.names.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise UnknownName.among(what, name, known)
    return [n for n in known if not names or n in names]


def _lost(history: Path, done: Exam) -> list[str]:
    """Marks whose interval lies wholly below that of the last exam of this seed in the history that has the mark.

    Raises BadData for a line that is no exam.
    """
    if not history.exists():
        return []
    before: dict[str, Measured] = {}
    for number, line in enumerate(history.read_text().splitlines(), 1):
        try:
            old = Exam.model_validate_json(line)
        except ValidationError:
            raise BadData(f"line {number} of {history} is no exam: give --history a file of its own.") from None
        if old.seed == done.seed:
            before |= old.marks
    lost = {name: (before[name], new) for name, new in done.marks.items() if name in before}
    return [f"{name}: {old.value:.3f} -> {new.value:.3f}" for name, (old, new) in lost.items() if new.high < old.low]
