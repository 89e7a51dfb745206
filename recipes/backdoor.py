"""Remove a backdoor with graphs made on clean text, beside fine-tuning and neuron pruning, over several seeds.

    python recipes/backdoor.py [--seeds 0,1] [--out runs/backdoor]

The same as `understudy exam --about backdoor --seed N` for each seed; writes one JSON file a seed and prints, for every
defence and budget of clean loss, the attack's success in each. Minutes a seed on two quiet cores. Every figure is a
function of the seed and of torch's version and processor. The figures of seeds 0 and 1 stand in `docs/log.md`.
"""

import argparse
import sys
from pathlib import Path

from understudy.cli.progress import TerminalProgress
from understudy.core.records.defence import Defences
from understudy.core.records.metric import Measured, Metric
from understudy.workflows.exam import ExamConfig, exam


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--out", type=Path, default=Path("runs/backdoor"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    with TerminalProgress() as progress:
        for seed in map(int, args.seeds.split(",")):
            done = exam(ExamConfig(about="backdoor", seed=seed), progress).defences
            assert done is not None
            (args.out / f"seed{seed}.json").write_text(done.model_dump_json(indent=1) + "\n")
            found.append(done)
    show(found)
    return 0


def show(found: list[Defences]) -> None:
    """One line a defence and budget: dose, clean loss and attack for each seed."""
    for rows in zip(*(d.chosen for d in found), strict=True):
        cells = [f"{r.dose}: +{_short(r.delta_loss)} nats, attack {_short(r.attack)}" for r in rows]
        print(f"{rows[0].defence}, at most +{rows[0].budget:g} nats:  {'  |  '.join(cells)}")


def _short(figure: Metric) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if isinstance(figure, Measured) else str(figure)


if __name__ == "__main__":
    sys.exit(main())
