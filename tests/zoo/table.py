"""Print docs/zoo.md: `python -m tests.zoo.table > docs/zoo.md`."""

import warnings

import torch
import transformers

from .cases import CASES
from .checks import CHECKS, outcomes, row

HEAD = """# The zoo

{n} random tiny networks, one for each architecture. On a site in the middle of each: **read** gives finite
activations in the layout stated; **edit**: a no-op is bit-identical, another edit changes the output, and none leaves a
trace; **stop** reads the same from an abandoned forward pass; **gradient** of the output reaches the site; **replace**:
the identity dictionary in the network's place equals the network to 1e-5, a zero dictionary does not.

Made by `python -m tests.zoo.table > docs/zoo.md`; the tests compare every row.

| network | site | axes | calls | {checks} |
|---|---|---|---|{rules}|
"""


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(HEAD.format(n=len(CASES), checks=" | ".join(CHECKS), rules="---|" * (len(CHECKS) - 1) + "---"), end="")
    for case in CASES:
        print(row(case, outcomes(case)), flush=True)


if __name__ == "__main__":
    main()
