"""Build every organism, run its checks and its twin's, and sit the exam.

    python recipes/organisms.py [--seed 0] [--preset quick]

The same as `understudy organisms --check` and then `understudy exam`, in one process; exits with 1 if a check fails.
Every figure is a function of the seed and of torch's version and processor. The exam's
figures of seed 0 stand in `docs/guide/organisms.md`.
"""

import argparse
import sys

from understudy.cli.progress import TerminalProgress
from understudy.core.records.progress import Progress
from understudy.organisms import ORGANISMS, make_organism
from understudy.workflows.exam import ExamConfig, exam


def checks(seed: int, progress: Progress) -> bool:
    """Print every check; True if all pass."""
    healthy = True
    for name in ORGANISMS:
        world = make_organism(name, seed, progress)
        assert world.negative is not None
        for who in (world, world.negative):
            for check in who.health():
                healthy &= check.passed
                print(f"{'ok    ' if check.passed else 'FAILED'} {who.name}: {check.name} {check.figure} {check.mark}")
    return healthy


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", choices=("quick", "full"), default="quick")
    args = parser.parse_args()
    with TerminalProgress() as progress:
        healthy = checks(args.seed, progress)
        for row in exam(ExamConfig(preset=args.preset, seed=args.seed), progress).rows:
            print(row.organism, row.method, row.site, row.truth_recovered, row.precision, sep="  ")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
