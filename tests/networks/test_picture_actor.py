"""Policies that see pictures: a task whose answer is in the frame, a policy written by hand, and real zips."""

import os
import subprocess

import numpy as np
import pytest
import torch

from understudy.core.records.errors import BadInput
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.networks import open_network
from understudy.networks.picture_actor import ConvMLP, PictureActor
from understudy.workflows._judging.acting import acting
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import TrainConfig, train

gymnasium = pytest.importorskip("gymnasium", reason="policies act in gymnasium's environments")

LENGTH = 12


class Side(gymnasium.Env):
    """One side of the frame is lit; choosing it earns a point. LENGTH steps."""

    def __init__(self, shape=(40, 44, 1), continuous=False, dtype=np.uint8):
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, dtype)
        two = gymnasium.spaces.Discrete(2)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32) if continuous else two

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def _frame(self):
        self.side = int(self.np_random.integers(2))
        frame = self.np_random.integers(0, 40, self.observation_space.shape, dtype=np.uint8)
        wide = frame.shape[1] // 2
        frame[:, self.side * wide : (self.side + 1) * wide] += 150
        return frame

    def step(self, action):
        reward, self.t = float(action == self.side) if np.ndim(action) == 0 else 0.0, self.t + 1
        return self._frame(), reward, False, self.t >= LENGTH, {}


@pytest.fixture(autouse=True, scope="module")
def registered():
    gymnasium.register("Side-v0", Side)
    gymnasium.register("SideC-v0", Side, kwargs={"continuous": True})
    gymnasium.register("SideRGB-v0", Side, kwargs={"shape": (40, 44, 3)})
    gymnasium.register("SideFloat-v0", Side, kwargs={"dtype": np.float32})
    yield
    for name in ("Side", "SideC", "SideRGB", "SideFloat"):
        del gymnasium.registry[f"{name}-v0"]


def seeing(environment="Side-v0") -> PictureActor:
    """Kernels of means; the Linear weighs the left of the map against the right."""
    module = ConvMLP((1, 2, 2, 2), 2 * 1 * 1, (2,), 2, torch.nn.Tanh)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        # A map of 9 x 10, then 3 x 4, then 1 x 2 whose left and right see different halves.
        for conv in module.convs:
            for i in range(2):
                conv[0].weight[i, min(i, conv[0].in_channels - 1)] = 1 / conv[0].weight[0, 0].numel()
        module.layers[0] = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
        module.layers[0][0].weight.copy_(torch.tensor([[1.0, -1.0, 0, 0], [-1.0, 1.0, 0, 0]]) * 200)
        module.layers[0][0].bias.zero_()
        module.head.weight.copy_(torch.eye(2))
    return PictureActor(module, "seeing", environment)


def test_a_policy_written_by_hand_sees_where_the_light_is():
    network = seeing()
    assert network.returns(6, seed=0).tolist() == [LENGTH] * 6
    chance = float(network.returns(64, seed=0, random=True).mean())
    assert chance == pytest.approx(LENGTH / 2, abs=0.8)
    assert torch.equal(network.returns(2, seed=4), network.returns(6, seed=4)[:2])


def test_every_step_is_a_sequence_that_knows_its_episode():
    network = seeing()
    frames, episodes = network.sequences("held_out"), network.play(96, seed=1 << 20)
    assert len(frames) == 96 * LENGTH
    batch = frames.batch([0, LENGTH, LENGTH + 1])
    assert torch.equal(batch.inputs["obs"][1, 0], episodes[1].obs[0, :, :, 0].float())
    assert batch.targets.flatten().tolist() == [int(episodes[0].actions[0]), *episodes[1].actions[:2].tolist()]
    assert batch.tags["document"].flatten().tolist() == [0, 1, 1]
    # What was seen is kept for training only: it would not fit for long play.
    assert network.play(1, seed=0, keep=False)[0].obs.numel() == 0


def test_sites_are_maps_and_layers_and_the_picture_is_what_was_seen():
    network = seeing()
    assert [(s.name, s.layout.axes) for s in network.named_sites()] == [
        ("conv.0", ("batch", "d", "y", "x")), ("conv.1", ("batch", "d", "y", "x")),
        ("conv.2", ("batch", "d", "y", "x")), ("mlp_in.0", ("batch", "d")), ("mlp_out.0", ("batch", "d")),
    ]  # fmt: skip
    batch = network.sequences("train").batch([3])
    assert network.picture.shown(batch.inputs["obs"])[0].float().equal(batch.inputs["obs"][0])


def test_loss_and_divergence_of_both_kinds_of_actions():
    network = seeing()
    batch = network.sequences("train").batch(slice(0, 6))
    output = network(batch)
    chances = torch.distributions.Categorical(logits=output)
    torch.testing.assert_close(network.loss(output, batch), -chances.log_prob(batch.targets))
    assert network.divergence(output, output, batch).abs().max() == 0
    gaussian = PictureActor(seeing().module, "g", "SideC-v0", torch.tensor([-0.5, 0.2]))
    batch = gaussian.sequences("train").batch(slice(0, 6))
    own = torch.distributions.Normal(gaussian(batch), gaussian.log_std.exp())
    torch.testing.assert_close(gaussian.loss(gaussian(batch), batch), -own.log_prob(batch.tags["action"]).sum(-1))
    assert gaussian.loss(gaussian(batch), batch).shape == (6, 1)


def test_a_replacement_acts_in_its_place():
    network = seeing()
    same = acting(network, Replacement(network, []), 6, 0, SILENT)
    assert (same.of_network.value, same.recovered.value) == (LENGTH, 1)

    class Blind(Replacement):
        """The last map replaced by zeros: both actions are then as likely."""

        def installed(self, *_, **__):
            return self.network.edited({Site("convs.2"): lambda value, call: torch.zeros_like(value)})

    blind = acting(network, Blind(network, []), 64, 0, SILENT)
    assert isinstance(blind.recovered, Measured)
    assert abs(blind.recovered.value) < 0.2


def test_it_is_trained_judged_and_reported_like_any_network(tmp_path):
    network = seeing()
    config = TrainConfig(
        network="py:x:y", kind="sae", sites="conv.1", n_latents=8, k=2, tokens=4000, out=tmp_path / "r"
    )
    train(config, network=network)
    card = evaluate(EvaluateConfig(run=config.out, sequences=32, rollouts=4), network=network)
    assert card.units < card.sequences == 32  # steps of one episode are one unit
    assert isinstance(card.acting.recovered, Measured)
    made = report(ReportConfig(run=config.out, sequences=32), network=network)
    shown = next(iter(made.features.values()))[0].contexts[0].picture
    assert (shown.rows, shown.columns, shown.label[:-1]) == (3, 4, "action ")
    assert (made.images[0].height, made.images[0].width) == (40, 44)


@pytest.mark.parametrize(
    ("environment", "channels", "says"),
    [("CartPole-v1", 0, "sees pictures"), ("SideFloat-v0", 0, "0 to 255"), ("SideRGB-v0", 1, "VecFrameStack"),
     ("SideC-v0", 1, "discrete actions")],
)  # fmt: skip
def test_an_environment_that_does_not_fit_is_named(environment, channels, says):
    with pytest.raises(BadInput, match=says):
        PictureActor(seeing().module, "x", environment, channels=channels)


# -- zips of stable-baselines3 ----------------------------------------------------------------------------------------

REAL = """
import sys, torch, warnings, gymnasium, numpy as np
warnings.filterwarnings("ignore")
import stable_baselines3
class Frames(gymnasium.Env):
    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(0, 255, (40, 44, 1), np.uint8)
        box, two = gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)
        self.action_space = box if sys.argv[2] == "box" else two
    def reset(self, *, seed=None, options=None): return self.observation_space.sample(), {}
    def step(self, action): return self.observation_space.sample(), 0.0, False, True, {}
more = {} if sys.argv[1] == "PPO" else {"net_arch": [8], "activation_fn": torch.nn.ReLU}
model = getattr(stable_baselines3, sys.argv[1])("CnnPolicy", Frames(), n_steps=8, seed=0, device="cpu",
    policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}, **more})
model.save(sys.argv[3])
obs = torch.randint(0, 256, (5, 1, 40, 44), generator=torch.Generator().manual_seed(0)).float()
found = model.policy.get_distribution(obs).distribution
torch.save({"obs": obs, "out": getattr(found, "logits", found.mean).detach()}, sys.argv[4])
"""


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_what_the_real_stable_baselines3_saves_computes_the_same(tmp_path, algorithm, actions):
    python = os.environ.get("UNDERSTUDY_SB3")
    if not python:
        pytest.skip("set UNDERSTUDY_SB3 to a Python that has stable-baselines3")
    files = [str(tmp_path / n) for n in ("model.zip", "found.pt")]
    subprocess.run([python, "-c", REAL, algorithm, actions, *files], check=True)
    theirs = torch.load(files[1], weights_only=True)
    network = open_network(f"sb3:{files[0]}@{'SideC' if actions == 'box' else 'Side'}-v0")
    assert isinstance(network, PictureActor)
    ours = network.module(theirs["obs"]).detach()
    torch.testing.assert_close(ours if actions == "box" else ours.log_softmax(-1), theirs["out"])
    assert len(network.returns(2, seed=0)) == 2
