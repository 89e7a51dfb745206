"""Actors that see pictures: convolutions, then the layers of any other policy. A step is a sequence of its own."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.core.batch import Batch
from understudy.core.network import Calls, NamedSite
from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.networks._playing import Episode
from understudy.networks.actor import Actor

KEPT = 1 << 28
"""Bytes of frames of a split; of longer play every second, third, ... step is kept."""
STRIDES, KERNELS = (4, 2, 1), (8, 4, 3)
"""Of the usual convolutions (Mnih et al. 2015, "Human-level control through deep reinforcement learning")."""


class ConvMLP(nn.Module):
    """Convolutions with ReLU, a Linear with ReLU, layers of Linear and activation, one Linear to the actions."""

    def __init__(
        self,
        channels: Sequence[int],
        n_flat: int,
        hidden: Sequence[int],
        n_actions: int,
        activation: type[nn.Module],
        scale: float = 1 / 255,
    ) -> None:
        """channels: of the frames and of each convolution's output. n_flat: numbers that the convolutions leave;
        hidden: widths of the layers, the first with ReLU. scale: frames are multiplied by it."""
        super().__init__()
        shapes = zip(pairwise(channels), KERNELS, STRIDES, strict=True)
        self.scale = scale
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, k, s), nn.ReLU()) for (a, b), k, s in shapes)
        widths = [n_flat, *hidden]
        kinds = [nn.ReLU, *[activation] * (len(hidden) - 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), kind()) for (a, b), kind in zip(pairwise(widths), kinds, strict=True)
        )
        self.head = nn.Linear(widths[-1], n_actions)

    def forward(self, obs: Float[Tensor, "n c y x"]) -> Float[Tensor, "n n_actions"]:
        obs = obs * self.scale
        for conv in self.convs:
            obs = conv(obs)
        obs = obs.flatten(1)
        for layer in self.layers:
            obs = layer(obs)
        return self.head(obs)


class PictureActor(Actor):
    """A policy that sees frames, and the environment it acts in.

    Inputs are `obs` [batch, channel, y, x], from 0 to 255; each step is a sequence of one place, and its places inside
    the network are positions of a map. Intervals are over episodes.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        environment: str,
        log_std: Float[Tensor, " n_actions"] | None = None,
        options: Mapping[str, Any] | None = None,
        channels: int = 0,
    ) -> None:
        """channels: that the module reads; 0: as many as the environment shows. The rest as for Actor."""
        self._channels = channels
        super().__init__(module, name, environment, log_std, options)

    def _spaces(self, env: Any) -> None:
        space = env.observation_space
        shape = space.shape
        if shape is None or len(shape) != 3 or str(space.dtype) != "uint8":
            raise BadInput(f"{self.environment} shows {space}; this policy sees pictures of numbers from 0 to 255.")
        # As stable-baselines3 has it: the shortest axis is that of channels.
        self._channels_last = min(range(3), key=lambda i: shape[i]) != 0
        high, wide, channels = shape if self._channels_last else (*shape[1:], shape[0])
        if self._channels not in (0, channels):
            raise BadInput(
                f"{self.name} reads {self._channels} channels and {self.environment} shows {channels}. Frames that "
                "were stacked outside the policy (VecFrameStack) are not in its file: register an environment that "
                "stacks them (gymnasium.wrappers), and name that."
            )
        names = tuple(f"action {i}" for i in range(int(getattr(env.action_space, "n", 0))))
        self.picture = PictureInput((high, wide), channels, scale=1.0, name="obs", classes=names)
        self._check_actions(env)

    def example(self) -> Batch:
        assert self.picture is not None
        g = torch.Generator().manual_seed(0)
        obs = torch.randint(0, 256, (3, self.picture.channels, *self.picture.size), generator=g).float()
        return Batch({"obs": obs.to(self.device)})

    def forward(self, batch: Batch) -> Float[Tensor, "batch 1 n_actions"]:
        return self.module(batch.inputs["obs"])[:, None]

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        if value.dim() == 4 and len(value) == 3:
            return ("batch", "d", "y", "x"), "depth"
        if value.dim() == 2 and len(value) == 3:
            return ("batch", "d"), "depth"
        return super().axes(site, value)

    def named_sites(self) -> tuple[NamedSite, ...]:
        paths = [n for n, m in self.module.named_modules() if isinstance(m, nn.Sequential)]
        convs = [n for n in paths if any(isinstance(m, nn.Conv2d) for m in self.module.get_submodule(n).children())]
        sites = {f"conv.{i}": Site(path) for i, path in enumerate(convs)}
        self.probe(sites.values())
        return (*(NamedSite(n, s, self.layout(s)) for n, s in sites.items()), *super().named_sites())

    # -- what it runs on --------------------------------------------------------------------------------------------

    def _stretches(self, episodes: list[Episode]) -> "Frames":
        n_bytes = sum(e.obs.numel() * e.obs.element_size() for e in episodes)
        every = -(-n_bytes // KEPT)
        obs = torch.cat([self._turned(e.obs[::every]) for e in episodes])
        actions = torch.cat([e.actions[::every] for e in episodes])
        document = torch.cat([torch.full((len(e.obs[::every]), 1), i) for i, e in enumerate(episodes)])
        return Frames(obs, actions, document)

    def _turned(self, obs: Tensor) -> Tensor:
        """Frames with the channels first, as the environment's numbers."""
        return obs.permute(0, 3, 1, 2) if self._channels_last else obs

    @torch.no_grad()
    def _act(self, obs: Tensor) -> Float[Tensor, "n n_actions"]:
        return self.module(self._turned(obs).to(self.device).float()).float().cpu()


class Frames:
    """Steps of episodes; one is one sequence with one action."""

    def __init__(self, obs: Tensor, actions: Tensor, document: Tensor) -> None:
        self.obs, self.actions, self.document = obs, actions, document

    def __len__(self) -> int:
        return len(self.obs)

    def batch(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        at = rows if isinstance(rows, (slice, Tensor)) else torch.as_tensor(rows)
        actions, tags = self.actions[at], {"document": self.document[at]}
        if not actions.is_floating_point():
            return Batch({"obs": self.obs[at].float()}, targets=actions[:, None].long(), tags=tags)
        nothing = torch.zeros(len(actions), 1, dtype=torch.long)
        return Batch({"obs": self.obs[at].float()}, targets=nothing, tags={**tags, "action": actions[:, None]})
