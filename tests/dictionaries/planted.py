"""A world whose features we planted: sparse sums of known directions, and training on it through the Trainer."""

import torch
from torch import Tensor

from understudy.core.dictionary import Dictionary, Group
from understudy.core.objective import Objective, TrainingState
from understudy.core.site import Site
from understudy.objectives import LocalFVU
from understudy.workflows._training.trainer import Schedule, Trainer

SITE = Site("planted")
D, N_FEATURES, ACTIVE = 32, 64, 4


def features() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(N_FEATURES, D, generator=torch.Generator().manual_seed(7)), dim=-1)


def rows(n: int, seed: int) -> Tensor:
    """n places at which about 4 of 64 features are on, each at 0.5 to 1.5, around a centre that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, N_FEATURES, generator=generator) < ACTIVE / N_FEATURES
    return (on * (0.5 + torch.rand(n, N_FEATURES, generator=generator))) @ features() + 0.3


def recovered(dictionary: Dictionary) -> float:
    """Mean over planted features of the largest cosine with an atom."""
    atoms = dictionary.atoms(torch.arange(dictionary.n_latents))[SITE].detach()
    return float((features() @ torch.nn.functional.normalize(atoms, dim=-1).T).max(-1).values.mean())


def silent_share(dictionary: Dictionary) -> float:
    """Share of latents that are off at all of 8192 held-out places."""
    return float((dictionary.encode({SITE: rows(8192, 2)}).z.fires() == 0).double().mean())


def trainer(group: Group, objective: Objective | None = None, steps: int = 300, batch: int = 256, ema=0.0) -> Trainer:
    x = rows(8192, 1)
    state = TrainingState({s: float(x.var(0, correction=0).sum()) for s in group.writes})
    objective = objective or LocalFVU(k_aux=16)
    return Trainer([group], objective, [state], Schedule(1e-2), steps * batch, 2000, ema)


def train(group: Group, objective: Objective | None = None, steps: int = 300, batch: int = 256) -> Trainer:
    made, x, generator = trainer(group, objective, steps, batch), rows(16384, 1), torch.Generator().manual_seed(3)
    for _ in range(steps):
        picked = x[torch.randint(len(x), (batch,), generator=generator)]
        made.train_step(dict.fromkeys((*group.reads, *group.writes), picked))
    return made
