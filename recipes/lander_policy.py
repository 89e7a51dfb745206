"""Train the demo's policy to land (gymnasium's LunarLander-v3) by PPO, and write it with its card.

    python recipes/lander_policy.py             # some minutes on one core

Clipped surrogate, advantages by GAE, one Adam (Schulman et al. 2017, arXiv:1707.06347; the constants are those that
are usual for this task). It makes one fixture and is not a trainer of policies.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.world import mean
from understudy.networks.actor import MLP, Actor

OUT = Path(__file__).parent.parent / "src/understudy/networks/demo/lander"
ENVIRONMENT, SEED, HIDDEN = "LunarLander-v3", 0, (64, 64)
ENVS, STEPS, TOTAL = 16, 1024, 1_500_000
GAMMA, LAMBDA, CLIP, ENTROPY, EPOCHS, ROWS, LR = 0.999, 0.98, 0.2, 0.01, 4, 128, 5e-4
JUDGED = 256
"""Episodes that the card's return is the mean of; their seeds are used nowhere else."""


def train() -> tuple[MLP, int, float]:
    """The policy, the steps it played and the seconds it took."""
    torch.manual_seed(SEED)
    envs = [gymnasium.make(ENVIRONMENT) for _ in range(ENVS)]
    n_inputs, n_actions = envs[0].observation_space.shape[0], int(envs[0].action_space.n)
    policy, value = MLP(n_inputs, HIDDEN, n_actions, nn.Tanh), MLP(n_inputs, HIDDEN, 1, nn.Tanh)
    for module in (policy, value):
        for m in module.modules():
            if isinstance(m, nn.Linear):
                nn.init.orthogonal_(m.weight, 2**0.5)
                nn.init.zeros_(m.bias)
    nn.init.orthogonal_(policy.head.weight, 0.01)
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR, eps=1e-5)
    obs = np.stack([env.reset(seed=SEED + i)[0] for i, env in enumerate(envs)])
    earned, finished, began = np.zeros(ENVS), [], time.monotonic()
    rounds = TOTAL // (ENVS * STEPS)
    for done_rounds in range(rounds):
        optimizer.param_groups[0]["lr"] = LR * (1 - done_rounds / rounds)
        kept = collect(envs, obs, policy, value, earned, finished)
        obs = kept.pop("last")
        improve(kept, policy, value, parameters, optimizer)
        if done_rounds % 8 == 7:
            print(f"{(done_rounds + 1) * ENVS * STEPS:,} steps, return {np.mean(finished[-64:]):.0f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return policy, rounds * ENVS * STEPS, time.monotonic() - began


@torch.no_grad()
def collect(envs: list, obs: np.ndarray, policy: MLP, value: MLP, earned: np.ndarray, finished: list) -> dict:
    seen, taken, log_ps, values, rewards, ends = [], [], [], [], [], []
    for _ in range(STEPS):
        x = torch.as_tensor(obs, dtype=torch.float32)
        chances = torch.distributions.Categorical(logits=policy(x))
        action, v = chances.sample(), value(x)[:, 0]
        seen.append(x), taken.append(action), log_ps.append(chances.log_prob(action)), values.append(v)
        reward, end, nexts = np.zeros(ENVS, np.float32), np.zeros(ENVS, np.float32), []
        for i, env in enumerate(envs):
            shown, r, ended, cut, _ = env.step(int(action[i]))
            earned[i] += r
            if cut and not ended:  # the episode was cut short, so what would have followed is added
                r += GAMMA * float(value(torch.as_tensor(shown, dtype=torch.float32)[None])[0, 0])
            if ended or cut:
                finished.append(earned[i])
                earned[i] = 0
                shown, _ = env.reset()
            reward[i], end[i] = r, ended or cut
            nexts.append(shown)
        obs = np.stack(nexts)
        rewards.append(torch.from_numpy(reward)), ends.append(torch.from_numpy(end))
    following, advantage = value(torch.as_tensor(obs, dtype=torch.float32))[:, 0], torch.zeros(ENVS)
    advantages: list[Tensor] = []
    for t in reversed(range(STEPS)):
        surprise = rewards[t] + GAMMA * following * (1 - ends[t]) - values[t]
        advantage = surprise + GAMMA * LAMBDA * (1 - ends[t]) * advantage
        advantages.insert(0, advantage)
        following = values[t]
    flat = {"obs": seen, "action": taken, "log_p": log_ps, "value": values, "advantage": advantages}
    return {k: torch.cat(v) for k, v in flat.items()} | {"last": obs}


def improve(kept: dict, policy: MLP, value: MLP, parameters: list, optimizer: torch.optim.Optimizer) -> None:
    goal = kept["advantage"] + kept["value"]
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(goal)).split(ROWS):
            a = kept["advantage"][rows]
            a = (a - a.mean()) / (a.std() + 1e-8)
            chances = torch.distributions.Categorical(logits=policy(kept["obs"][rows]))
            ratio = (chances.log_prob(kept["action"][rows]) - kept["log_p"][rows]).exp()
            surrogate = torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
            error = F.mse_loss(value(kept["obs"][rows])[:, 0], goal[rows])
            loss = -surrogate + 0.5 * error - ENTROPY * chances.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()


def write(policy: MLP, steps: int, seconds: float, out: Path) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    n_inputs, n_actions = policy.layers[0][0].in_features, policy.head.out_features
    config = {
        "model_type": "understudy-policy", "environment": ENVIRONMENT, "n_inputs": n_inputs, "hidden": list(HIDDEN),
        "n_actions": n_actions, "activation": "tanh", "actions": "discrete",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, out / "model.safetensors")
    actor = Actor(policy, "lander", ENVIRONMENT)
    earned, chance = actor.returns(JUDGED, 1 << 24), actor.returns(JUDGED, 1 << 24, random=True)
    card = {
        "what": "A policy that lands a craft (LunarLander-v3, 4 actions), two layers of 64, trained by "
        "recipes/lander_policy.py.",
        "parameters": sum(p.numel() for p in policy.parameters()),
        "return": mean(earned, "points").model_dump() | {"is": "mean over episodes, actions drawn; solved is 200"},
        "return_of_random_actions": mean(chance, "points").model_dump(),
        "training": {"steps": steps, "seed": SEED, "seconds": round(seconds), "torch": torch.__version__,
                     "gymnasium": gymnasium.__version__, "python": platform.python_version()},
    }  # fmt: skip
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    print(json.dumps(write(*train(), asked.out), indent=1))
