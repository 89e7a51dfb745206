"""`report`: everything a report page shows - scorecard, features in context, curves, provenance."""

from pathlib import Path

import torch
from pydantic import PositiveInt

from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadFolder
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import CurvePoint, Report, Scorecard
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._reporting.features import features
from understudy.workflows._scoring.claims import add_claims, check_claims
from understudy.workflows.evaluate import EvaluateConfig, SavedRun, address, evaluate, named, open_run


class ReportConfig(Config):
    """What the report shows."""

    run: Path
    """Folder of a finished run; RUN:mlp.3 is one group of it alone."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    features: PositiveInt = 60
    """Features of each dictionary, drawn at random from those that fired: not the prettiest ones."""
    sequences: PositiveInt = 256
    """Held-out sequences searched for contexts."""
    explanations: Path | None = None
    """Neuronpedia's explanations of the latents, a file or a folder, shown as what others claim; by default those the
    score was given."""
    seed: int = 0
    """Decides which features and contexts are shown."""


@torch.no_grad()
def report(config: ReportConfig, progress: Progress = SILENT, network: Network | None = None) -> Report:
    """Gather a run's report; judges it first if no scorecard is there. Features are also kept as features.json."""
    run = open_run(config.run, network or config.network, config.device)
    explanations = config.explanations or getattr(run.config, "explanations", None)
    if explanations is not None:
        check_claims(run.network, run.groups, explanations)
    if not run.folder.file(run.file_name("scorecard.json")).exists():
        evaluate(EvaluateConfig(run=config.run, network=config.network, device=config.device), progress, network)
    card = _scorecard(run)
    enough = config.sequences * (run.config.context or DEFAULT_CONTEXT)
    held_out = open_sequences(run.network, run.config.data, "held_out", run.config.context, enough, run.skip_first)
    shown, images = features(run, held_out, config.features, config.sequences, config.seed, progress)
    if explanations is not None:
        shown = add_claims(shown, run.network, run.groups, explanations, progress)
    described = {s: [f.model_dump() for f in fs] for s, fs in shown.items()}
    run.folder.write_json(run.file_name("features.json"), described)
    curves = [CurvePoint(places=line["places"], terms=line["groups"]) for line in run.folder.metrics()]
    provenance = run.folder.read_json("provenance.json")
    return Report(scorecard=card, features=shown, curves=curves, provenance=provenance, images=images)


def write_page(config: ReportConfig, page: str) -> Path:
    """Write report.html into the run's folder; the page of a part of a run has a name of its own."""
    folder, part = address(config.run)
    return RunFolder(folder).write_text(named("report.html", part), page)


def _scorecard(run: SavedRun) -> Scorecard:
    path = run.folder.file(run.file_name("scorecard.json"))
    try:
        return Scorecard.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFolder(
            f"{path} is not a scorecard of this version ({str(error).splitlines()[0]}). "
            f"Make it again: understudy evaluate {run.folder.path}{':' if run.part else ''}{run.part}"
        ) from None
