"""How much of each rung of the ladder one recipe of transcoders understands.

    python recipes/understood.py --out FOLDER                      # trains and judges on every rung, minutes each
    python recipes/understood.py --out FOLDER --rungs demo ladder:stdlib-0.1m

The same dictionaries (latents a unit of width, k, tokens) stand in for every MLP of each rung. Writes
`understood.json`, `understood.md` (a table with its date) and `ladder.html` (the plots). Runs that are there are kept.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

from understudy.core.records.ladder import Understood
from understudy.core.records.metric import Measured, Metric
from understudy.networks import open_network, rungs
from understudy.web.ladder import render
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.ladder import LadderConfig, ladder
from understudy.workflows.train import TrainConfig, train

EXPANSION, K, TOKENS, SEQUENCES = 4, 16, 400_000, 64
"""Latents = 4 x width; k is the same on every rung, so wider networks are given the same number of features a place."""


def understand(name: str, out: Path) -> Understood:
    """Train and judge transcoders of every MLP of one network; its run is kept in `out`."""
    network = open_network(name)
    (site, *_) = (part.write for part in network.parts() if part.name.startswith("mlp"))
    run = out / name.replace(":", "-")
    if not (run / "weights.safetensors").exists():
        settings = {"network": name, "sites": "mlp", "n_latents": EXPANSION * network.width(site), "k": K}
        train(TrainConfig(**settings, tokens=TOKENS, out=run), network=network)
    card = evaluate(EvaluateConfig(run=run, sequences=SEQUENCES, rollouts=0), network=network)
    l0 = [row.l0.value for row in card.dictionaries if isinstance(row.l0, Measured)]
    own = card.replacement
    return Understood(
        network=name,
        parameters=sum(p.numel() for p in network.module.parameters()),
        loss_clean=own.loss_clean,
        delta_loss=own.delta_loss,
        recovered=own.recovered.mean,
        l0=sum(l0) / len(l0),
        equivalent_compute=own.equivalent_compute,
    )  # fmt: skip


def table(rows: list[Understood]) -> str:
    """Markdown, with the date and what it was made with."""

    def cell(metric: Metric, form: str = "{:.3f}") -> str:
        if not isinstance(metric, Measured):
            return f"not measured: {metric.not_measured}"
        return f"{form} [{form}, {form}]".format(metric.value, metric.low, metric.high)

    lines = [
        f"Transcoders of every MLP, latents {EXPANSION} x width, k = {K}, {TOKENS:,} tokens, {SEQUENCES} held-out "
        f"sequences; {datetime.date.today()}, Python {platform.python_version()}.",
        "",
        "| network | parameters | loss, nats | excess, nats | recovered of mean ablation | L0 | equivalent FLOPs |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = (cell(r.loss_clean), cell(r.delta_loss), cell(r.recovered), f"{r.l0:.1f}")
        compute = cell(r.equivalent_compute, "{:.2g}")
        lines.append(f"| {r.network} | {r.parameters:,} | {' | '.join(figures)} | {compute} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the results")
    parser.add_argument("--rungs", nargs="*", help="networks; default every annealed rung")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = []
    for wanted in asked.rungs or [rung.name for rung in rungs()]:
        found.append(understand(wanted, asked.out))
        print(found[-1].network, found[-1].recovered, flush=True)
        found.sort(key=lambda row: row.parameters)
        (asked.out / "understood.json").write_text(json.dumps([row.model_dump(mode="json") for row in found], indent=1))
        (asked.out / "understood.md").write_text(table(found))
    (asked.out / "ladder.html").write_text(render(ladder(LadderConfig(checkpoints=True)), found))
