"""Where a lookup head becomes a copying head: the same head, trained alike on tables of 16 to 512 keys.

    python recipes/lookup_or_copy.py [--sizes 16 64 256] [--seeds 3]

For each size and seed: of questions whose key stands with a value it never had, the share that is answered from the
table and the share that is answered from the context, with Wilson's interval over 1,024 questions; then the mean over
seeds with a normal interval. A quarter of a minute on one core for each head, kept in the cache. The figures stand in
`docs/guide/organisms.md`.
"""

import argparse

import torch

from understudy.cli.progress import TerminalProgress
from understudy.core.world import mean
from understudy.organisms.lookup_or_copy import told_apart

SIZES = (16, 32, 64, 128, 256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for size in args.sizes:
        shares = []
        for seed in range(args.seeds):
            with TerminalProgress() as progress:
                by_table, by_context = told_apart(size, seed, progress)
            print(f"{size} keys, seed {seed}: table {by_table}, context {by_context}", flush=True)
            shares.append((by_table.value, by_context.value))
        if len(shares) > 1:
            table, context = (mean(torch.tensor(column), "fraction") for column in zip(*shares))
            print(f"{size} keys: table {table}, context {context}", flush=True)


if __name__ == "__main__":
    main()
