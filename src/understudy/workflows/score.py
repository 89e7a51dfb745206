"""`score`: judge dictionaries that already exist, in the files of other libraries, on a network that already exists."""

from pathlib import Path
from typing import Any

from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Scorecard
from understudy.workflows._opening import open_network
from understudy.workflows._runs import fingerprint, provenance
from understudy.workflows._scoring.claims import check_claims
from understudy.workflows._scoring.opening import ScoreConfig as ScoreConfig
from understudy.workflows._scoring.opening import entries, models, open_groups
from understudy.workflows.evaluate import EvaluateConfig, SavedRun, judge


def score(network: Network | str, dictionary: Path | str, progress: Progress = SILENT, **options: Any) -> Scorecard:
    """The scorecard of `dictionary` (FOLDER, FOLDER/GLOB or hf:ORG/REPO[:GLOB]) in the place of parts of `network`.

    options: the other fields of `ScoreConfig`. The card, and what the other commands need to open this as a run, are
    written to the folder `out`. Raises UnknownName, BadWeights, WrongShape, BadFolder.
    """
    name = network.name if isinstance(network, Network) else network
    config = ScoreConfig.checked({"network": name, "dictionary": str(dictionary), **options}, "score")
    return run_score(config, progress, network if isinstance(network, Network) else None)


def run_score(config: ScoreConfig, progress: Progress = SILENT, network: Network | None = None) -> Scorecard:
    """`score` from a configuration; network: stands in for the one it names."""
    RunFolder.new(config.out)
    opened = network or open_network(config.network, device=config.device)
    groups = open_groups(config, opened)
    if config.explanations is not None:
        check_claims(opened, groups, config.explanations)
    found = entries(groups)
    progress.say(
        f"{len(found)} dictionaries ({found[0].format}), made for {', '.join(models(groups)) or 'no one says'}"
    )
    folder = RunFolder(config.out)
    with folder.locked("scoring"), folder.starting(config.to_yaml()):
        folder.write_json("provenance.json", provenance() | {"network weights": fingerprint(opened)})
        folder.write_json("thresholds.json", {})
        folder.write_json("source.json", [_described(config, entry) for entry in found])
        run = SavedRun(folder, config, opened, groups)
        judging = EvaluateConfig(
            run=config.out, sequences=config.sequences, rollouts=config.rollouts, seed=config.seed,
            fit_places=config.fit_places, slice_by=config.slice_by,
        )  # fmt: skip
        return judge(run, judging, progress)


def _described(config: ScoreConfig, entry: Any) -> dict[str, Any]:
    return {
        "source": config.dictionary, "address": entry.address, "format": entry.format, "kind": entry.kind,
        "reads": entry.read, "writes": list(entry.writes), "n_latents": entry.n_latents, "made for": entry.model,
        "rule": dict(entry.rule), "about": dict(entry.about),
    }  # fmt: skip
