"""`demo`: every MLP of a small real network replaced by a transcoder, judged and reported.

A network without MLPs has what its mixers add to the stream rewritten by SAEs instead, and their modules still run.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveInt

from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Report
from understudy.workflows._opening import open_network
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import Count, TrainConfig, Trained, train


class DemoConfig(Config):
    """What the demo runs; the defaults take a few minutes on two cores."""

    network: str = "demo"
    """demo or demo:NAME; any other network works too."""
    out: Path = Path("runs/demo")
    """Folder of the run. An earlier run there is moved aside."""
    tokens: Count = 1_200_000
    """Places to train on."""
    n_latents: PositiveInt = 1024
    """Latents of each dictionary."""
    k: int = 16
    """Latents kept at each place."""
    sequences: PositiveInt = 96
    """Held-out sequences to judge on."""
    seed: int = 0
    """Decides everything random."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""


@dataclass(frozen=True)
class Demo:
    """What the demo made, and the seconds each part took."""

    trained: Trained
    report: Report
    seconds: dict[str, float]


def demo(config: DemoConfig, progress: Progress = SILENT) -> Demo:
    """Train, evaluate and report. A demo run that was there before is moved aside, not mixed in."""
    network = open_network(config.network, device=config.device, progress=progress)
    network.name = config.network  # the run keeps it, and opens it again by it
    kind, sites = what_to_replace(network)
    train_config = TrainConfig(
        network=config.network, kind=kind, sites=sites, n_latents=config.n_latents, k=config.k,
        tokens=config.tokens, seed=config.seed, out=_fresh(config.out, progress), device=config.device,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(what: str) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[what], began = now - began, now

    trained = train(train_config, progress, network)
    lap("training")
    evaluate(EvaluateConfig(run=config.out, sequences=config.sequences, seed=config.seed), progress, trained.network)
    lap("judging")
    made = report(ReportConfig(run=config.out), progress, trained.network)
    lap("report")
    return Demo(trained, made, seconds)


def what_to_replace(network: Network) -> tuple[str, str]:
    """Kind and sites: transcoders for MLPs, else SAEs for what mixers write, where there are any."""
    has_mlp = any(part.name.startswith("mlp.") for part in network.parts())
    has_mixer = any(row.name.startswith("mixer_out.") for row in network.named_sites())
    return ("sae", "mixer_out") if has_mixer and not has_mlp else ("transcoder", "mlp")


def _fresh(out: Path, progress: Progress) -> Path:
    """Move an earlier run to the first free name beside it; anything else there is refused by `train`."""
    if (out / "config.yaml").exists():
        number = next(i for i in range(1, 10_000) if not out.with_name(f"{out.name}.{i}").exists())
        out.rename(out.with_name(f"{out.name}.{number}"))
        progress.say(f"the earlier run is now {out.with_name(f'{out.name}.{number}')}")
    return out
