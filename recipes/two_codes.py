"""Which of two equally sparse codes an SAE finds, by what it was trained on: the activation, or what is read of it.

    python recipes/two_codes.py [--seeds 5] [--organisms two_codes_saturating] [--objectives local kl]

Prints a line for each organism, objective and seed, and the mean over seeds with a normal 95% interval: 1 is the code
that the next layer reads, 0 the other, 0.5 chance. The figures stand in `docs/guide/organisms.md`.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from understudy.core.world import mean
from understudy.dictionaries import SAE
from understudy.organisms import make_organism
from understudy.organisms.two_codes import which_code
from understudy.workflows.train import TrainConfig, train

LATENTS, K, PLACES = 96, 4, 1_000_000
"""As many latents as the code in use has vectors, and as many a place as are on, as in the exam."""


def score(organism: str, objective: str, seed: int) -> float:
    """The share of the code in use among an SAE's living latents."""
    world = make_organism(organism, seed)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            kind="sae", sites="act", n_latents=LATENTS, k=K, tokens=PLACES, batch=1024, seed=seed,
            objective=objective, local_weight=0.0 if objective == "kl" else None, out=Path(folder) / "run",
            checkpoint_s=3600,
        )  # fmt: skip
        trained = train(config, network=world.network)
    (member,) = trained.groups[0].members
    assert isinstance(member, SAE)
    (site,) = member.reads
    batch = world.data["held_out"].batch(slice(0, 64))
    alive = member.encode(world.network.record(batch, [site])).z.fires() > 0
    code = which_code(member.W_dec.detach()[alive], seed)
    (conversion,) = trained.conversion.values()
    print(f"{organism}, {objective}, seed {seed}: {code}, {int(alive.sum())} alive, {conversion}", flush=True)
    return code.value


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--organisms", nargs="*", default=["two_codes", "two_codes_saturating"])
    parser.add_argument("--objectives", nargs="*", default=["local", "kl", "gradient_weighted"])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for organism in args.organisms:
        for objective in args.objectives:
            values = [score(organism, objective, seed) for seed in range(args.seeds)]
            if len(values) > 1:
                print(f"{organism}, {objective}: {mean(torch.tensor(values), 'fraction')}", flush=True)


if __name__ == "__main__":
    main()
