"""What eight dictionaries that differ in their seed cost over one harvest, beside one.

    python benchmarks/seeds.py [--network demo --site resid.2 --n-latents 2048 16384 --seeds 8]

Processor seconds of one thread for 2048 places: what harvesting them takes, a training step of one TopK SAE (k=16) and
a step of all seeds on the same rows, each the least of some repeats, so that other work on the machine counts little.
The ratio is (harvest + step of all) / (harvest + step of one); separate runs would cost as many times one as there are
seeds. Writes `benchmarks/results/seeds.json`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from understudy.core.site import Site
from understudy.networks import open_network
from understudy.workflows._data import open_sequences
from understudy.workflows._training.build import plan
from understudy.workflows._training.harvest import Harvest
from understudy.workflows.train import TrainConfig, chunk_sequences, start, starting_sample

BATCH, REPEATS = 2048, 3


def seconds(work: Callable[[], object]) -> float:
    """The least of some repeats."""
    took = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def cost(config: TrainConfig, harvest: Harvest, sample: dict[Site, torch.Tensor], seeds: int) -> dict[str, float]:
    network, what = harvest.network, plan(harvest.network, config.kind, config.sites)
    trainers = [start(config.model_copy(update={"seed": i}), network, sample, what) for i in range(seeds)]
    rows = {site: value[:BATCH] for site, value in sample.items()}
    for trainer in trainers:  # what a first step allocates is no cost of a step
        trainer.train_step(rows)
    one = seconds(lambda: trainers[0].train_step(rows))
    every = seconds(lambda: [trainer.train_step(rows) for trainer in trainers])
    chunk = seconds(lambda: harvest.chunk(1))
    harvesting = chunk * BATCH / harvest.n_rows
    ratio = (harvesting + every) / (harvesting + one)
    return {"harvest_s": harvesting, "step_s": one, f"{seeds}_steps_s": every, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--network", default="demo")
    parser.add_argument("--site", default="resid.2")
    parser.add_argument("--n-latents", type=int, nargs="*", default=[2048, 16384])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "seeds.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, found = open_network(args.network), {}
    sequences = open_sequences(network, "stdlib", "train", None, 200_000, None)
    for n in args.n_latents:
        config = TrainConfig(network=args.network, kind="sae", sites=args.site, n_latents=n, k=16)
        what = plan(network, config.kind, config.sites)
        harvest = Harvest(network, sequences, what.sites, 0, min(32, chunk_sequences(network, sequences, what.sites)))
        found[str(n)] = cost(config, harvest, starting_sample(harvest), args.seeds)
        print(n, {k: round(v, 4) for k, v in found[str(n)].items()}, flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
