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
OUT, D_OUT = Site("written"), 40


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
    made = trainer(group, objective, steps, batch)
    run(made, batch)
    return made


def run(made: Trainer, batch: int = 256) -> None:
    """A trainer to its end, the same rows at every site."""
    x, generator, group = rows(16384, 1), torch.Generator().manual_seed(3), made.groups[0]
    while made.places < made.total_places:
        picked = x[torch.randint(len(x), (batch,), generator=generator)]
        made.train_step(dict.fromkeys((*group.reads, *group.writes), picked))


def features_out() -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.nn.functional.normalize(torch.randn(N_FEATURES, D_OUT, generator=generator), dim=-1)


def pair(n: int, seed: int) -> dict[Site, Tensor]:
    """The same features read in one place and written in another of another width, each along a direction there."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, N_FEATURES, generator=generator) < ACTIVE / N_FEATURES
    z = on * (0.5 + torch.rand(n, N_FEATURES, generator=generator))
    return {SITE: z @ features() + 0.3, OUT: z @ features_out() - 0.2}


def recovered_at(dictionary: Dictionary, site: Site) -> float:
    """As `recovered`, for what is written at one site."""
    planted = features() if site == SITE else features_out()
    atoms = dictionary.atoms(torch.arange(dictionary.n_latents))[site].detach()
    return float((planted @ torch.nn.functional.normalize(atoms, dim=-1).T).max(-1).values.mean())


def train_pair(group: Group, steps: int = 300, batch: int = 256, objective: Objective | None = None) -> Trainer:
    """Training on both sites, whichever the group reads and writes."""
    acts, generator = pair(16384, 1), torch.Generator().manual_seed(3)
    state = TrainingState({s: float(acts[s].var(0, correction=0).sum()) for s in group.writes})
    made = Trainer([group], objective or LocalFVU(16), [state], Schedule(1e-2), steps * batch, 2000, 0.0)
    for _ in range(steps):
        picked = torch.randint(len(acts[SITE]), (batch,), generator=generator)
        made.train_step({s: v[picked] for s, v in acts.items()})
    return made
