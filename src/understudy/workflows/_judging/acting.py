"""Acting: what the understudy earns in the environment, in the policy's place."""

import numpy as np
import torch

from understudy.core.network import Network
from understudy.core.records.metric import NotMeasured
from understudy.core.records.progress import Progress
from understudy.core.records.scorecard import Acting
from understudy.core.replacement import Replacement
from understudy.metrics import Bootstrap

SEED = 1 << 22
"""Episodes of the scorecard begin where neither those of training nor held-out ones do."""


@torch.no_grad()
def acting(network: Network, replacement: Replacement, n: int, seed: int, progress: Progress) -> Acting:
    """n episodes of the network, of the understudy and of random actions, from the same beginnings with the same random
    numbers; intervals over episodes, differences paired."""
    start = SEED + seed * (1 << 10)
    with progress.task("acting", 3, "arms") as task:
        own = network.returns(n, start)
        if isinstance(own, NotMeasured):
            return Acting(difference=own)
        task.update(1, "network")
        with replacement.installed():
            replaced = network.returns(n, start)
        task.update(2, "understudy")
        chance = network.returns(n, start, random=True)
    assert not isinstance(replaced, NotMeasured)
    assert not isinstance(chance, NotMeasured)
    a, b, c, ones = own.numpy(), replaced.numpy(), chance.numpy(), np.ones(n)
    bootstrap = Bootstrap(n, seed)
    return Acting(
        episodes=n,
        of_network=bootstrap.ratio(a, ones, "points"),
        of_understudy=bootstrap.ratio(b, ones, "points"),
        of_random_actions=bootstrap.ratio(c, ones, "points"),
        difference=bootstrap.difference(b, a, ones, "points"),
        recovered=bootstrap.figure(lambda a, b, c: (b - c) / (a - c), "fraction", a=a, b=b, c=c),
    )
