"""What revives dead latents, and whether one Multi-TopK dictionary serves at any k, on planted features.

    python recipes/dead_latents.py [--seeds 3]

Organism `synthetic`: 109 features in 48 dimensions. First table: SAEs of which 30% of the latents start with a bias
below 0: out of the top k, or so low that they are positive nowhere. Second
table: SAEs trained at each k beside one Multi-TopK SAE used at each k. Means over seeds with normal 95% intervals, on
held-out places. Some minutes on one core; the tables stand in `docs/guide/training.md`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn.functional import normalize

from understudy.core.dictionary import Acts
from understudy.core.names import find_sites
from understudy.core.records.metric import Measured, exact
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.core.world import World, mean
from understudy.dictionaries import SAE
from understudy.organisms import make_organism
from understudy.sparsity import TopK
from understudy.workflows.train import TrainConfig, train

UNLUCKY = 0.3
STARTS = {"OutOfTopK": "out of the top k", "Negative": "positive nowhere"}
CURES = ("none", "resample", "auxk")
SITE = "act"
PLACES, LATENTS, K = 300_000, 128, 8
KS = (2, 4, 8, 16, 32)
NAMED = 0.9
"""Least cosine at which a latent's direction counts as a feature's."""


class OutOfTopK(SAE):
    """An SAE of which a share of the latents starts too low to be among the k largest.

    bias: in units of an encoder row's length, for rows of mean square 1."""

    bias = -0.6

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        made = super().start(reads, writes, n_latents, sparsity, sample, seed)
        with torch.no_grad():
            made.b_enc[: round(UNLUCKY * n_latents)] = cls.bias * float(made.W_enc[0].norm())
        return made


class Negative(OutOfTopK):
    """The same, with pre-activations below 0 everywhere: AuxK, which has a ReLU, does not reach them."""

    bias = -1.0


def trained(world: World, seed: int, k: int, **asked: Any) -> SAE:
    """With per-latent thresholds, in raw units."""
    values = {"kind": "sae", "n_latents": LATENTS, "tokens": PLACES, "batch": 1024} | asked
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(sites=SITE, k=k, seed=seed, out=Path(folder) / "run", checkpoint_s=3600, **values)
        (member,) = train(config, network=world.network).groups[0].members
    assert isinstance(member, SAE)
    return member


@torch.no_grad()
def fvu(sae: SAE, acts: Acts) -> float:
    (site,) = sae.reads
    x, hat = acts[site], sae.reconstruct(acts)[site]
    return float((x - hat).square().sum() / (x - x.mean((0, 1))).square().sum())


def after(world: World, acts: Acts, seed: int, began: str, cure: str) -> dict[str, float]:
    sae = trained(world, seed, K, kind=f"{Path(__file__).stem}.{began}", dead=cure)
    fires = sae.with_sparsity(TopK(K)).encode(acts).z.fires() > 0
    planted = torch.stack([f.direction for f in world.truth.features if sae.reads[0] in f.sites])
    nearest = (normalize(planted, dim=-1) @ normalize(sae.W_dec.detach()[fires], dim=-1).T).amax(1)
    named = float((nearest > NAMED).double().mean())
    return {"dead": float((~fires).double().mean()), "FVU": fvu(sae.with_sparsity(TopK(K)), acts), "found": named}


def at_any_k(world: World, acts: Acts, seed: int) -> dict[str, dict[str, float]]:
    multi, narrow = trained(world, seed, K, sparsity="multi_topk"), trained(world, seed, K)
    out = {}
    for k in KS:
        of = {"trained for it": trained(world, seed, k), f"topk, k={K}": narrow, f"multi_topk, k={K}": multi}
        used = {name: sae.with_sparsity(TopK(k)) for name, sae in of.items()}
        out[f"{k}"] = {name: fvu(sae, acts) for name, sae in used.items()}
        kept = list(used.values())[-1].encode(acts).z.values
        out[f"{k}"]["of it, on"] = float((kept > 0).double().mean())
    return out


def table(first: str, rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: means over seeds."""

    def cell(values: list[float]) -> str:
        m: Measured = mean(torch.tensor(values), "fraction") if len(values) > 1 else exact(values[0], "fraction", 1)
        return f"{m.value:.3f}" if m.low == m.high else f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]"

    names = list(next(iter(rows.values()))[0])
    lines = [f"| {' | '.join([first, *names])} |", "|---" * (len(names) + 1 + first.count("|")) + "|"]
    for row, seeds in rows.items():
        lines.append(f"| {row} | {' | '.join(cell([found[name] for found in seeds]) for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="*", default=["cures", "k"], choices=["cures", "k"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    worlds = [make_organism("synthetic", seed) for seed in range(args.seeds)]
    held_out = [held(world) for world in worlds]
    each = list(enumerate(zip(worlds, held_out, strict=True)))
    if "cures" in args.tables:
        rows = {
            f"{words} | `{cure}`": [after(world, acts, seed, began, cure) for seed, (world, acts) in each]
            for began, words in STARTS.items()
            for cure in CURES
        }
        print(table("30% start | `--dead`", rows), flush=True)
    if "k" in args.tables:
        found = [at_any_k(w, acts, seed) for seed, (w, acts) in each]
        print(table("k", {k: [seed[k] for seed in found] for k in found[0]}), flush=True)


@torch.no_grad()
def held(world: World) -> Acts:
    """All held-out places at the site."""
    (site,) = find_sites(world.network, SITE)
    return world.network.record(world.data["held_out"].batch(slice(0, len(world.data["held_out"]))), [site])


if __name__ == "__main__":
    main()
