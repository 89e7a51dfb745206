"""Is an SAE trained on what the network outputs with it in place better there than one trained on its activation?

    python recipes/end_to_end.py --out FOLDER [--network ladder:stdlib-0.3m --site resid.1 --seeds 2 --arms local kl]

Every arm has the same k and the same places, each at the learning rate that is best for it: the lowest extra loss in
nats on 32 held-out sequences, first seed, among the recipe's rate times 1, 2, 4, ... until it rises. `local-6x` has six
times the places, which costs about what an end-to-end run does. Measured on 384 other held-out sequences, under TopK
and with per-latent thresholds, with differences from the first arm's run of the same seed, paired over documents; the
mean over seeds on the same resamples. Runs that are there are kept, so a second call goes on. The table stands in
`docs/guide/training.md`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.cli.progress import TerminalProgress
from understudy.core.batch import Sequences
from understudy.core.dictionary import Dictionary, Group
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.progress import Progress
from understudy.data import Order
from understudy.metrics import Bootstrap
from understudy.networks import open_network
from understudy.sparsity import TopK
from understudy.workflows._data import open_sequences
from understudy.workflows._judging.arms import Arm
from understudy.workflows._judging.passes import CLEAN, UNDERSTUDY, behaviour_pass, local_pass
from understudy.workflows.evaluate import documents
from understudy.workflows.train import TrainConfig, default_lr, train

ARMS: dict[str, dict[str, Any]] = {
    "local": {},
    "kl+fvu": {"objective": "kl"},
    "kl": {"objective": "kl", "local_weight": 0.0},
    "local-6x": {"times": 6},
}
FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0)
CHOSEN_ON, JUDGED = 32, 384


class Asked(NamedTuple):
    """What all runs share."""

    network: str
    site: str
    n_latents: int
    k: int
    places: int
    context: int
    out: Path


def trained(asked: Asked, arm: str, factor: float, seed: int, progress: Progress) -> Dictionary:
    """Train if it is not there yet."""
    own = dict(ARMS[arm])
    run = asked.out / f"{arm}-lr{factor:g}-seed{seed}"
    values = {
        "network": asked.network, "kind": "sae", "sites": asked.site, "n_latents": asked.n_latents, "k": asked.k,
        "tokens": asked.places * own.pop("times", 1), "context": asked.context, "seed": seed, "out": run,
        "lr": factor * default_lr(asked.n_latents), **own,
    }  # fmt: skip
    (group,) = train(TrainConfig(out=run, resume=True) if run.exists() else TrainConfig(**values), progress).groups
    return group.members[0]


class Figures(NamedTuple):
    """One run in one form, one entry for each sequence."""

    l0: float
    fvu: np.ndarray
    """In each resample of documents."""
    extra: np.ndarray
    """Loss in the network's place less the network's own, nats, summed over scored places."""
    scored: np.ndarray


def forms(member: Dictionary, k: int) -> dict[str, Group]:
    assert isinstance(member, LinearDictionary)
    return {"topk": Group([member.with_sparsity(TopK(k))]), "thresholds": Group([member])}


@torch.no_grad()
def figures(
    network: Network, members: Mapping[str, Dictionary], k: int, held_out: Sequences, picked: Tensor, progress: Progress
) -> dict[tuple[str, str], Figures]:
    """By run and form, all on one clean pass."""
    groups = {(run, form): group for run, m in members.items() for form, group in forms(m, k).items()}
    bootstrap = Bootstrap(len(picked), clusters=documents(held_out, picked))
    local = local_pass(network, list(groups.values()), held_out, picked, progress)
    first, *others = groups.items()
    arms = [Arm(str(key), [group]) for key, group in others]
    judged = behaviour_pass(network, [first[1]], arms, held_out, picked, [], progress)
    assert not isinstance(judged, NotMeasured)
    clean, out = judged.sums[CLEAN], {}
    for (key, _), own in zip(groups.items(), local, strict=True):
        sums = judged.sums[UNDERSTUDY if key == first[0] else str(key)]
        ((site, reconstruction),) = own.sites.items()
        extra = sums.sums["loss"][0] - clean.sums["loss"][0]
        out[key] = Figures(own.mean_l0(site), reconstruction.fvu_draws(bootstrap), extra, clean.count[0])
    return out


def best_rate(
    network: Network, asked: Asked, arm: str, held_out: Sequences, picked: Tensor, progress: Progress
) -> float:
    """The factor on the recipe's rate whose run loses least with thresholds, as it will be used."""
    lost: dict[float, float] = {}
    for factor in FACTORS:
        found = figures(network, {arm: trained(asked, arm, factor, 0, progress)}, asked.k, held_out, picked, progress)
        lost[factor] = float(found[arm, "thresholds"].extra.sum())
        if lost[factor] > min(lost.values()):
            break
    return min(lost, key=lambda f: lost[f])


def rows(seeds: Sequence[Mapping[tuple[str, str], Figures]], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Figures by run and form: each seed's, and the mean of all."""
    first, out = next(iter(seeds[0]))[0], {}
    for arm, form in seeds[0]:
        own, base = [s[arm, form] for s in seeds], [s[first, form] for s in seeds]
        for name, at in ({f"{i}": [i] for i in range(len(seeds))} | {"mean": [*range(len(seeds))]}).items():
            extra, other = (np.mean([f[i].extra for i in at], axis=0) for f in (own, base))
            fvu = bootstrap.summarise(np.mean([own[i].fvu for i in at], axis=0), "fraction", bootstrap.n_units)
            out[f"{arm} | {form} | {name}"] = {
                "L0": float(np.mean([own[i].l0 for i in at])),
                "FVU": fvu,
                "delta loss, nats": bootstrap.ratio(extra, own[0].scored, "nats"),
                f"less that of {first}": bootstrap.difference(extra, other, own[0].scored, "nats"),
            }
    return out


def cell(m: Metric | float) -> str:
    if isinstance(m, (int, float)):
        return f"{m:.2f}"
    return m.not_measured if isinstance(m, NotMeasured) else f"{m.value:.4f} [{m.low:.4f}, {m.high:.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--network", default="ladder:stdlib-0.3m")
    parser.add_argument("--site", default="resid.1")
    parser.add_argument("--n-latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--places", type=int, default=500_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = Asked(args.network, args.site, args.n_latents, args.k, args.places, args.context, args.out)
    network = open_network(asked.network)
    enough = 2 * (CHOSEN_ON + JUDGED) * asked.context
    held_out = open_sequences(network, "stdlib", "held_out", asked.context, enough, None)
    picked = Order(len(held_out), 0).stream(0, CHOSEN_ON + JUDGED)
    chosen_on, judged = picked[:CHOSEN_ON], picked[CHOSEN_ON:]
    bootstrap = Bootstrap(len(judged), clusters=documents(held_out, judged))
    found = []
    with TerminalProgress() as progress:
        rates = {arm: best_rate(network, asked, arm, held_out, chosen_on, progress) for arm in args.arms}
        for seed in range(args.seeds):
            runs = {arm: trained(asked, arm, rates[arm], seed, progress) for arm in args.arms}
            found.append(figures(network, runs, asked.k, held_out, judged, progress))
    lines = {f"{n} | {rates[n.partition(' ')[0]]:g}": own for n, own in rows(found, bootstrap).items()}
    names = ["arm", "form", "seed", "rate x", *next(iter(lines.values()))]
    table = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    table += [f"| {name} | {' | '.join(map(cell, own.values()))} |" for name, own in lines.items()]
    print("\n".join(table))
    plain = {n: {k: v if isinstance(v, float) else v.model_dump() for k, v in own.items()} for n, own in lines.items()}
    (args.out / "end_to_end.json").write_text(json.dumps(plain, indent=1) + "\n")
    (args.out / "end_to_end.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
