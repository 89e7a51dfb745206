"""Playing episodes of gymnasium's environments."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName

LONGEST = 100_000
"""Steps after which an episode is given up."""


def play(
    environment: str,
    options: Mapping[str, Any],
    act: Callable[[Float[Tensor, "n n_inputs"]], Float[Tensor, "n n_actions"]] | None,
    n: int,
    seed: int,
    log_std: Float[Tensor, " n_actions"] | None,
    keep: bool = True,
) -> list["Episode"]:
    """n episodes side by side, with actions drawn from what `act` says, or uniformly from all actions without it.

    act: logits of actions, or their means where log_std is given. Episode i begins as the environment's seed `seed + i`
    says and draws its actions from numbers of its own, so that two arms differ only by what they compute. Pictures
    (bytes) stay bytes. keep: False forgets what was seen. Raises BadInput where an episode does not end in 100,000
    steps.
    """
    live = {i: _Live(environment, options, seed + i, log_std, keep) for i in range(n)}
    done: dict[int, Episode] = {}
    for _ in range(LONGEST):
        if not live:
            return [done[i] for i in range(n)]
        scores = None if act is None else act(torch.stack([e.obs for e in live.values()]))
        for row, (i, episode) in enumerate(list(live.items())):
            if episode.step(None if scores is None else scores[row]):
                done[i] = live.pop(i).finish()
    raise BadInput(f"{environment}: {len(live)} of {n} episodes did not end in {LONGEST:,} steps.")


@dataclass(frozen=True)
class Episode:
    """What the policy saw, what it did, and what all of it earned."""

    obs: Tensor
    """[step, n_inputs] or bytes [step, ...]; none where it was not kept."""
    actions: Tensor
    """[step] for discrete actions, [step, n_actions] for Gaussian ones."""
    earned: float


class _Live:
    """An episode that is being played."""

    def __init__(
        self, environment: str, options: Mapping[str, Any], seed: int, log_std: Tensor | None, keep: bool
    ) -> None:
        self._keep = keep
        self._env = _gymnasium().make(environment, **options)
        self._env.action_space.seed(seed)
        first, _ = self._env.reset(seed=seed)
        self.obs = _seen(first)
        self._generator = torch.Generator().manual_seed(seed)
        self._log_std = log_std
        self._seen: list[Tensor] = []
        self._done: list[Tensor] = []
        self._earned = 0.0

    def step(self, scores: Tensor | None) -> bool:
        """Act once; scores None acts at random. True at the end."""
        action = self._draw(scores)
        if self._keep:
            self._seen.append(self.obs)
        self._done.append(action)
        space = self._env.action_space
        given = int(action) if self._log_std is None else action.numpy().clip(space.low, space.high)
        seen, reward, ended, cut, _ = self._env.step(given)
        self.obs = _seen(seen)
        self._earned += float(reward)
        return bool(ended or cut)

    def _draw(self, scores: Tensor | None) -> Tensor:
        if scores is None:
            return torch.as_tensor(self._env.action_space.sample())
        if self._log_std is None:
            noise = torch.rand(scores.shape, generator=self._generator).clamp(1e-20)
            return (scores - (-noise.log()).log()).argmax()
        return scores + torch.randn(scores.shape, generator=self._generator) * self._log_std.exp()

    def finish(self) -> Episode:
        self._env.close()
        obs = torch.stack(self._seen) if self._keep else self.obs[None][:0]
        return Episode(obs, torch.stack(self._done), self._earned)


def _seen(value: Any) -> Tensor:
    """What an environment shows, as a tensor of its own: bytes stay bytes, other numbers become fp32."""
    found = torch.as_tensor(value)
    return found.clone() if found.dtype == torch.uint8 else found.to(torch.float32, copy=True)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UnderstudyError("policies act in gymnasium's environments: pip install 'understudy[policies]'.") from None
    return gymnasium


@contextmanager
def made(environment: str, options: Mapping[str, Any]) -> Iterator[Any]:
    """An environment that is closed in the end. Raises UnknownName for one that gymnasium cannot make."""
    gymnasium = _gymnasium()
    try:
        with warnings.catch_warnings():
            # Box2D's C module warns on its first import, and where warnings are errors it takes Python down with it.
            warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)
            env = gymnasium.make(environment, **options)
    except (gymnasium.error.Error, TypeError) as error:
        raise UnknownName(f"gymnasium cannot make {environment!r}: {str(error).splitlines()[0]}") from None
    try:
        yield env
    finally:
        env.close()
