"""Actors of gymnasium environments: a policy that sees what an environment shows and chooses what to do.

A sequence is a stretch of an episode that the policy itself played; a place is one step of it. What counts besides the
distribution of actions is the return: what a replacement earns when it acts in the policy's place.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.batch import NO_TARGET, Batch, Sequences
from understudy.core.network import Calls, NamedSite, Network, Part
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.metric import NotMeasured
from understudy.core.site import Site
from understudy.networks._playing import Episode, made, play

STRETCH = 32
"""Steps of one sequence. Episodes are cut; intervals resample whole episodes."""
EPISODES: Mapping[str, int] = {"train": 96, "held_out": 96}
OFFSET: Mapping[str, int] = {"train": 0, "held_out": 1 << 20}
"""Seeds of episodes; a split's own, so that none is in both."""
Actions = Literal["discrete", "gaussian"]


class MLP(nn.Module):
    """Layers of Linear and activation, then one Linear to the actions: what most policies are."""

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_actions: int, activation: type[nn.Module]) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), activation()) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], n_actions)

    def forward(self, obs: Float[Tensor, "*places n_inputs"]) -> Float[Tensor, "*places n_actions"]:
        for layer in self.layers:
            obs = layer(obs)
        return self.head(obs)


class Actor(Network):
    """A policy and the environment it acts in.

    Inputs are `obs` [batch, step, n_inputs]; the output is logits of actions [batch, step, n_actions], or their means
    where they are Gaussian. The loss is what the policy's own action costs, -log p in nats (log density for Gaussian
    ones); the divergence is KL between the distributions of actions.
    """

    family = "policy"

    def __init__(
        self,
        module: nn.Module,
        name: str,
        environment: str,
        log_std: Float[Tensor, " n_actions"] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """environment: its id in gymnasium; options: keyword arguments of `gymnasium.make`. log_std: of Gaussian
        actions; None for discrete ones. Raises UnderstudyError without gymnasium, BadInput where the spaces are others.
        """
        super().__init__(module, name)
        self.environment, self.options = environment, dict(options or {})
        self.log_std = log_std
        with made(environment, self.options) as env:
            self._spaces(env)

    @property
    def actions(self) -> Actions:
        return "discrete" if self.log_std is None else "gaussian"

    def _spaces(self, env: Any) -> None:
        shape = env.observation_space.shape
        if shape is None or len(shape) != 1:
            raise BadInput(f"{self.environment} shows {env.observation_space}; this policy sees vectors.")
        self.n_inputs = int(shape[0])
        self._check_actions(env)

    def _check_actions(self, env: Any) -> None:
        found = type(env.action_space).__name__
        wanted = "Discrete" if self.log_std is None else "Box"
        if found != wanted:
            raise BadInput(f"{self.environment} takes {env.action_space}, but {self.name} has {self.actions} actions.")

    # -- inputs and sites -------------------------------------------------------------------------------------------

    def example(self) -> Batch:
        g = torch.Generator().manual_seed(0)
        obs = torch.randn(3, 5, self.n_inputs, generator=g).to(self.device)
        return Batch({"obs": obs})

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        if value.dim() == 3 and value.shape[:2] == (3, 5):
            return ("batch", "pos", "d"), "depth"
        return super().axes(site, value)

    @cached_property
    def _layers(self) -> list[str]:
        """Paths of the layers before the one that gives the actions."""
        children = [n for n, m in self.module.named_modules() if isinstance(m, nn.Sequential)]
        return [n for n in children if any(isinstance(m, nn.Linear) for m in self.module.get_submodule(n).children())]

    def named_sites(self) -> tuple[NamedSite, ...]:
        names: dict[str, Site] = {}
        for i, path in enumerate(self._layers):
            names |= {f"mlp_in.{i}": Site(path, "in"), f"mlp_out.{i}": Site(path)}
        self.probe(names.values())
        return tuple(NamedSite(name, site, self.layout(site)) for name, site in names.items())

    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(f"mlp.{i}", Site(path, "in"), Site(path)) for i, path in enumerate(self._layers))

    def aside(self) -> tuple[str, ...]:
        return ("head",)

    # -- what it runs on --------------------------------------------------------------------------------------------

    def sequences(self, split: str) -> Sequences | None:
        """Episodes that the policy played, the same for a seed, cut into stretches of 32 steps."""
        if split not in EPISODES:
            raise UnknownName.among("split", split, EPISODES)
        if split not in self._played:
            self._played[split] = self._stretches(self.play(EPISODES[split], OFFSET[split]))
        return self._played[split]

    @cached_property
    def _played(self) -> dict[str, Sequences]:
        return {}

    def _stretches(self, episodes: list[Episode]) -> Sequences:
        rows: list[tuple[int, int]] = [(i, at) for i, e in enumerate(episodes) for at in range(0, len(e.obs), STRETCH)]
        obs = torch.zeros(len(rows), STRETCH, self.n_inputs)
        actions = torch.zeros(len(rows), STRETCH, *episodes[0].actions.shape[1:], dtype=episodes[0].actions.dtype)
        mask = torch.zeros(len(rows), STRETCH, dtype=torch.bool)
        for row, (i, at) in enumerate(rows):
            part = episodes[i].obs[at : at + STRETCH]
            obs[row, : len(part)], mask[row, : len(part)] = part, True
            actions[row, : len(part)] = episodes[i].actions[at : at + STRETCH]
        document = torch.tensor([i for i, _ in rows])[:, None].expand(-1, STRETCH)
        return Stretches(obs, actions, mask, document)

    # -- behaviour --------------------------------------------------------------------------------------------------

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, "batch step"]:
        """-log p(the policy's own action) in nats, in fp32; 0 where there is none."""
        if batch.targets is None:
            raise BadInput(f"the loss of {self.name} needs the actions that were taken: Batch(..., targets=...).")
        if self.log_std is None:
            chosen = output.float().flatten(0, -2), batch.targets.flatten()
            return F.cross_entropy(*chosen, reduction="none", ignore_index=NO_TARGET).reshape(batch.targets.shape)
        taken = batch.tags["action"]
        log_p = torch.distributions.Normal(output.float(), self._std).log_prob(taken).sum(-1)
        return torch.where(batch.targets == NO_TARGET, 0.0, -log_p)

    def divergence(self, a: Tensor, b: Tensor, batch: Batch) -> Float[Tensor, "batch step"]:
        """KL(a || b) between distributions of actions in nats, in fp32."""
        if self.log_std is not None:
            return ((a.float() - b.float()) / self._std).square().sum(-1) / 2
        log_p, log_q = a.float().log_softmax(-1), b.float().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def choice(self, output: Tensor) -> Int[Tensor, "batch step"] | NotMeasured:
        """The most likely action, where actions are discrete."""
        return super().choice(output) if self.log_std is not None else output.argmax(-1)

    @property
    def _std(self) -> Tensor:
        assert self.log_std is not None
        return self.log_std.exp().to(self.device)

    # -- acting -----------------------------------------------------------------------------------------------------

    def returns(self, n: int, seed: int, random: bool = False) -> Float[Tensor, " n"]:
        return torch.tensor([e.earned for e in self.play(n, seed, random, keep=False)], dtype=torch.float64)

    def play(self, n: int, seed: int, random: bool = False, keep: bool = True) -> list[Episode]:
        """n episodes of the module as it is now (inside `Replacement.installed()`, of the replacement). keep: what was
        seen, too."""
        act = None if random else self._act
        return play(self.environment, self.options, act, n, seed, self.log_std, keep)

    @torch.no_grad()
    def _act(self, obs: Float[Tensor, "n n_inputs"]) -> Float[Tensor, "n n_actions"]:
        return self.module(obs[:, None].to(self.device))[:, 0].float().cpu()


class Stretches:
    """Stretches of episodes, padded at the end of the last."""

    def __init__(self, obs: Tensor, actions: Tensor, mask: Tensor, document: Tensor) -> None:
        self.obs, self.actions, self.mask, self.document = obs, actions, mask, document

    def __len__(self) -> int:
        return len(self.obs)

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        at = rows if isinstance(rows, (slice, Tensor)) else torch.as_tensor(rows)
        mask, actions = self.mask[at], self.actions[at]
        discrete = not actions.is_floating_point()
        targets = torch.where(mask, actions if discrete else 0, NO_TARGET).long()
        tags = {"document": self.document[at]} | ({} if discrete else {"action": actions})
        return Batch({"obs": self.obs[at]}, mask, targets, tags)
