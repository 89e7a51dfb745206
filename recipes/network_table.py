"""What each of the demo's networks gives when it is taken apart: sites, training, score, graph, and a graph run.

    python recipes/network_table.py --work FOLDER                       # every network, some minutes each
    python recipes/network_table.py --work FOLDER --networks demo:gru

One recipe for all: dictionaries as `understudy demo` chooses them for the network, 256 latents each, k = 16, 60,000
places. Prints the table of docs/guide/networks.md. What is done is kept in FOLDER and not done again.
"""

import argparse
import json
from pathlib import Path

from understudy import open_network
from understudy.core.graph import Graph
from understudy.core.records.graph import Certificate
from understudy.core.records.graph_curve import GRAPH, RANDOM
from understudy.core.records.metric import Measured, Metric
from understudy.workflows.attribute import AttributeConfig, attribute
from understudy.workflows.demo import what_to_replace
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.run import RunConfig, run
from understudy.workflows.train import TrainConfig, train

NETWORKS = ("demo", "demo:mamba2", "demo:gru", "demo:digits-vit", "demo:lander")
N_LATENTS, K, PLACES, SEQUENCES, PLACES_OF_GRAPH, KEPT = 256, 16, 60_000, 12, 24, 128


def column(name: str, kind: str, sites: str, folder: Path) -> dict[str, str]:
    """One column of the table. Lander and vision transformer bring their own data; the others read the library."""
    network = open_network(name)
    finished = folder / "column.json"
    if finished.exists():
        return json.loads(finished.read_text())
    if not (folder / "run/groups.json").exists():
        config = TrainConfig(network=name, kind=kind, sites=sites, n_latents=N_LATENTS, k=K, tokens=PLACES, batch=512,
                             out=folder / "run", resume=(folder / "run/config.yaml").exists())  # fmt: skip
        train(config, network=None if config.resume else network)
    card = evaluate(EvaluateConfig(run=folder / "run", sequences=SEQUENCES, rollouts=4), network=network)
    graph = folder / "graph.acg"
    if not graph.exists():
        attribute(AttributeConfig(run=str(folder / "run"), context=PLACES_OF_GRAPH, out=graph), network=network)
    made = Graph.open(graph).card
    total = N_LATENTS * len(card.dictionaries)
    curve = run(
        RunConfig(source=folder / "run", nodes=str(KEPT), sequences=SEQUENCES, ranking_sequences=SEQUENCES),
        network=network,
    )
    own = card.replacement
    fvu = [r.fvu.value for r in card.dictionaries if isinstance(r.fvu, Measured)]
    rivals = {n: r.replacement.delta_loss for n, r in card.baselines.items() if not r.is_oracle}
    rival = min(rivals, key=lambda n: _value(rivals[n]))
    written = card.rollout.delta_loss
    sizes = {s.selection: s for s in curve.sizes}
    assert made.certificate is not None
    exact = "yes" if made.certificate.exact else "no"
    rows = {
        "parameters": f"{sum(p.numel() for p in network.module.parameters()):,}",
        "sites: named": str(len(network.named_sites())),
        "train: dictionaries": f"{len(card.dictionaries)} x {kind} at `{sites}`",
        "FVU": f"{min(fvu):.2f} to {max(fvu):.2f}",
        "score: loss of the network, nats": said(own.loss_clean),
        "excess loss, nats": said(own.delta_loss),
        "recovered of mean ablation": said(own.recovered.mean),
        "best rival, its excess": f"{rival.replace('_', ' ')}, {said(card.baselines[rival].replacement.delta_loss)}",
        "worth, training FLOPs of a Llama": said(own.equivalent_compute, "{:.1e}"),
        "its own text, or return kept": said(card.acting.recovered if name == "demo:lander" else written),
        "attribute: exact": f"{exact}, errors up to {_worst(made.certificate):.0e}",
        "live slope": said(made.live.slope, "{:.2f}"),
        "live R2": said(made.live.r2, "{:.2f}"),
        f"run: excess with {KEPT} latents": f"{said(sizes[GRAPH].delta_loss)} (of {total:,})",
        "random latents": said(sizes[RANDOM].delta_loss),
    }
    finished.write_text(json.dumps(rows))
    return rows


def _worst(proof: Certificate) -> float:
    return max(proof.row_sum_error, proof.clamp_error or 0.0, proof.second_derivative or 0.0)


def said(metric: Metric, form: str = "{:.3f}") -> str:
    if not isinstance(metric, Measured):
        return metric.not_measured
    return f"{form} [{form}, {form}]".format(metric.value, metric.low, metric.high)


def _value(metric: Metric) -> float:
    return metric.value if isinstance(metric, Measured) else float("inf")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and graphs")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    asked = parser.parse_args()
    columns = {}
    for name in asked.networks:
        kind, sites = what_to_replace(open_network(name))
        columns[name] = column(name, kind, sites, asked.work / name.replace(":", "-"))
    print(f"| | {' | '.join(f'`{name}`' for name in columns)} |\n|{'---|' * (1 + len(columns))}")
    for label in columns[asked.networks[0]]:
        print(f"| {label} | {' | '.join(cells[label] for cells in columns.values())} |")
