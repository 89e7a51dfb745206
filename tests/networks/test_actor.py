"""Policies: sites, what they play, and what a replacement earns in their place."""

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from understudy.core.records.errors import BadInput, BadWeights, UnknownName
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.networks import open_network, sb3_opening
from understudy.networks.actor import MLP, Actor
from understudy.networks.actor_opening import open_actor
from understudy.workflows._judging.acting import acting

pytest.importorskip("gymnasium", reason="policies act in gymnasium's environments")


def cartpole(hidden=(16, 8)) -> Actor:
    torch.manual_seed(0)
    return Actor(MLP(4, hidden, 2, nn.Tanh), "cart", "CartPole-v1")


def pendulum() -> Actor:
    torch.manual_seed(0)
    return Actor(MLP(3, (8,), 1, nn.Tanh), "pendulum", "Pendulum-v1", torch.tensor([-0.5]))


class Upright(nn.Module):
    """Push the cart to the side that the pole leans and turns to: balances it, by hand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 1), nn.Identity())])
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.layers[0][0].weight.copy_(torch.tensor([[0.0, 0.0, 30.0, 10.0]]))
            self.layers[0][0].bias.zero_()
            self.head.weight.copy_(torch.tensor([[-10.0], [10.0]]))
            self.head.bias.zero_()

    def forward(self, obs):
        return self.head(self.layers[0](obs))


def test_sites_and_parts_are_the_layers_before_the_actions():
    network = cartpole()
    assert [p.name for p in network.parts()] == ["mlp.0", "mlp.1"]
    assert [(s.name, s.layout.width) for s in network.named_sites()] == [
        ("mlp_in.0", 4), ("mlp_out.0", 16), ("mlp_in.1", 16), ("mlp_out.1", 8),
    ]  # fmt: skip
    assert network.record(network.example(), [Site("layers.1")])[Site("layers.1")].shape == (3, 5, 8)


def test_a_policy_written_by_hand_earns_what_the_task_pays():
    network = Actor(Upright(), "upright", "CartPole-v1")
    assert network.returns(8, seed=0).tolist() == [500.0] * 8
    assert 10 < float(network.returns(32, seed=0, random=True).mean()) < 40


def test_the_same_seed_plays_the_same_episodes_whatever_is_played_beside():
    network = cartpole()
    few, many = network.play(3, seed=5), network.play(9, seed=5)
    for a, b in zip(few, many[:3], strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.actions, b.actions)
        assert a.earned == b.earned == len(a.obs)
    assert not torch.equal(network.play(1, seed=6)[0].obs, few[0].obs)


def test_stretches_hold_every_step_once_and_know_their_episode():
    network = cartpole()
    held_out = network.sequences("held_out")
    batch = held_out.batch(slice(0, len(held_out)))
    episodes = network.play(96, seed=1 << 20)
    assert int(batch.mask.sum()) == sum(len(e.obs) for e in episodes)
    assert torch.equal(batch.inputs["obs"][batch.mask], torch.cat([e.obs for e in episodes]))
    assert torch.equal(batch.targets[batch.mask], torch.cat([e.actions for e in episodes]))
    assert (batch.targets[~batch.mask] == -100).all()
    assert set(batch.tags["document"].flatten().tolist()) == set(range(96))
    with pytest.raises(UnknownName, match="held_out"):
        network.sequences("test")


def test_discrete_loss_is_what_the_action_costs_and_divergence_is_kl():
    network, batch = cartpole(), cartpole().sequences("train").batch(slice(0, 6))
    with torch.no_grad():
        output = network(batch)
    chances = torch.distributions.Categorical(logits=output)
    by_hand = -chances.log_prob(batch.targets.clamp(min=0)) * batch.mask
    torch.testing.assert_close(network.loss(output, batch), by_hand)
    other = torch.distributions.Categorical(logits=torch.zeros_like(output))
    kl = torch.distributions.kl_divergence(chances, other)
    torch.testing.assert_close(network.divergence(output, torch.zeros_like(output), batch), kl)


def test_gaussian_loss_and_divergence_are_those_of_normal_distributions():
    network = pendulum()
    batch = network.sequences("train").batch(slice(0, 4))
    with torch.no_grad():
        output = network(batch)
    own = torch.distributions.Normal(output, network.log_std.exp())
    by_hand = -own.log_prob(batch.tags["action"]).sum(-1) * batch.mask
    torch.testing.assert_close(network.loss(output, batch), by_hand)
    moved = torch.distributions.Normal(output + 0.3, network.log_std.exp())
    kl = torch.distributions.kl_divergence(own, moved).sum(-1)
    torch.testing.assert_close(network.divergence(output, output + 0.3, batch), kl)


def test_acting_compares_the_same_episodes_and_an_understudy_that_changes_nothing_earns_the_same():
    network = Actor(Upright(), "upright", "CartPole-v1")
    found = acting(network, Replacement(network, []), 6, 0, SILENT)
    assert isinstance(found.difference, Measured)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.recovered.value == 1
    assert found.of_network.value == 500
    assert found.of_random_actions.value < 60


def test_an_understudy_of_zeros_acts_at_random_and_recovers_nothing():
    class Silenced(Replacement):
        """The layer's output replaced by zeros: both actions are then as likely."""

        def installed(self, *_, **__):
            return self.network.edited({Site("layers.0"): lambda value, call: torch.zeros_like(value)})

    network = Actor(Upright(), "upright", "CartPole-v1")
    found = acting(network, Silenced(network, []), 48, 0, SILENT)
    assert found.recovered.low <= 0.02
    assert abs(found.recovered.value) < 0.03


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Actor(MLP(4, (4,), 2, nn.Tanh), "x", "NoSuch-v0"), "NoSuch"),
        (lambda: Actor(MLP(3, (4,), 2, nn.Tanh), "x", "Pendulum-v1"), "takes Box"),
        (lambda: Actor(MLP(4, (4,), 2, nn.Tanh), "x", "CartPole-v1", torch.zeros(2)), "gaussian actions"),
        (lambda: Actor(MLP(4, (4,), 2, nn.Tanh), "x", "FrozenLake-v1"), "sees vectors"),
    ],
)
def test_an_environment_that_does_not_fit_is_named(make, says):
    with pytest.raises((BadInput, UnknownName), match=says):
        make()


def test_the_lander_opens_where_warnings_are_errors():
    """Once Python itself died of it, before anything was said."""
    if find_spec("Box2D") is None:
        pytest.skip("the lander needs gymnasium[box2d]")
    opened = "from understudy.networks.opening import open_network; open_network('demo:lander')"
    code = f"import torch, transformers, gymnasium, warnings; warnings.simplefilter('error'); {opened}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- zips of stable-baselines3 ----------------------------------------------------------------------------------------


def as_sb3(path, module: MLP, log_std=None, activation="Tanh", extra=None, raw=None, settings=None):
    """A zip laid out as stable-baselines3 2.9 lays it out."""
    state = {f"mlp_extractor.policy_net.{2 * i}.{part}": getattr(layer[0], part)
             for i, layer in enumerate(module.layers) for part in ("weight", "bias")}  # fmt: skip
    state |= {"action_net.weight": module.head.weight, "action_net.bias": module.head.bias}
    state |= {"mlp_extractor.value_net.0.weight": torch.zeros(2, 4), "value_net.weight": torch.zeros(1, 2)}
    state |= {} if log_std is None else {"log_std": log_std}
    state |= extra or {}
    buffer = io.BytesIO()
    torch.save({k: v.detach() for k, v in state.items()}, buffer)
    kwargs = {":type:": "<class 'dict'>", "activation_fn": f"<class 'torch.nn.modules.activation.{activation}'>"}
    with zipfile.ZipFile(path, "w") as archive:
        said = {"policy_kwargs": kwargs, "use_sde": False} if settings is None else settings
        archive.writestr("data", json.dumps(said))
        archive.writestr("policy.pth", buffer.getvalue() if raw is None else raw)
    return path


@pytest.mark.parametrize(("activation", "kind"), [("Tanh", nn.Tanh), ("ReLU", nn.ReLU)])
def test_a_zip_opens_as_the_policy_it_holds(tmp_path, activation, kind):
    torch.manual_seed(0)
    module = MLP(4, (8, 6), 2, kind)
    opened = open_network(f"sb3:{as_sb3(tmp_path / 'p.zip', module, activation=activation)}@CartPole-v1")
    batch = opened.example()
    torch.testing.assert_close(opened(batch), module(batch.inputs["obs"]))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"raw": pickle.dumps({"action_net.weight": Bomb()})}, BadWeights, "refused|cut short"),
        ({"raw": b""}, BadWeights, "cut short"),
        ({"extra": {"q_net.q_net.0.weight": torch.zeros(2)}}, BadInput, "PPO and A2C"),
        ({"extra": {"features_extractor.cnn.0.weight": torch.zeros(2)}}, BadInput, r"no features_extractor\.cnn"),
        ({"extra": {"features_extractor.resnet.weight": torch.zeros(2)}}, BadInput, "resnet"),
        ({"extra": {"action_net.bias": torch.tensor([float("nan"), 0.0])}}, BadWeights, "not finite"),
        ({"extra": {"action_net.bias": torch.zeros(3)}}, BadWeights, r"head.weight is \[2, 6\], not \[3, 6\]"),
        ({"extra": {"action_net.bias": torch.zeros(())}}, BadWeights, r"action_net.bias is \[\]; a layer's bias has 1"),
        ({"extra": {"mlp_extractor.policy_net.4.weight": torch.zeros(6, 6)}}, BadWeights, "4.bias is not there"),
        ({"extra": {"action_net.bias": torch.zeros(2, device="meta")}}, BadWeights, "no table of tensors"),
        ({"extra": {"action_net.bias": torch.zeros(2).to_sparse()}}, BadWeights, "no table of tensors"),
        ({"extra": {3: torch.zeros(2)}}, BadWeights, "no table of tensors"),
        ({"raw": b"\x80\x02}q\x00."}, BadWeights, "cut short"),
        ({"settings": []}, BadWeights, "no table of settings"),
        ({"settings": {"policy_kwargs": "x"}}, BadWeights, "no table of settings"),
        # One number with strides of 0, and a bias without a weight like it: 10^12 and 10^8 numbers are claimed.
        ({"extra": {"action_net.weight": torch.zeros(1).expand(10**6, 10**6)}}, BadWeights, "4,000,000,000,000"),
        ({"extra": {"action_net.bias": torch.zeros(1).expand(10**8)}}, BadWeights, r"\[2, 6\], not \[100000000, 6\]"),
    ],
)
def test_a_zip_that_is_something_else_is_refused(tmp_path, monkeypatch, change, error, says):
    monkeypatch.chdir(tmp_path)
    path = as_sb3(tmp_path / "p.zip", MLP(4, (8, 6), 2, nn.Tanh), **change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(error, match=says):
        open_network(f"sb3:{path}@CartPole-v1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17, "kibibytes"
    assert not (tmp_path / "exploded").exists()


def test_a_file_of_torchs_that_unpacks_to_far_more_is_refused_before_it_is(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 22))
    monkeypatch.setattr(sb3_opening, "LARGEST", 1 << 20)
    assert len(buffer.getvalue()) < 1 << 14
    path = as_sb3(tmp_path / "p.zip", MLP(4, (8, 6), 2, nn.Tanh), raw=buffer.getvalue())
    with pytest.raises(BadWeights, match=r"policy\.pth would unpack to 4,194,304 bytes"):
        open_network(f"sb3:{path}@CartPole-v1")


def test_a_folder_whose_card_claims_other_sizes_is_refused(tmp_path):
    """Of 10^9 inputs nothing is made before the weights bear it out."""
    module = MLP(4, (8, 6), 2, nn.Tanh)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "model.safetensors")
    card = {"n_inputs": 4, "hidden": [8, 6], "n_actions": 2, "activation": "tanh", "environment": "CartPole-v1"}
    for change, says in (
        ({"n_inputs": 10**9}, r"layers.0.0.weight is \[8, 4\], not \[8, 1000000000\]"),
        ({"hidden": [10**9, 6]}, r"is \[8, 4\], not \[1000000000, 4\]"),
        ({"hidden": [8] * 10**5}, "there are 6 tensors"), ({"hidden": None}, "hidden layers None"),
        ({"n_actions": "two"}, "cannot be made"), ({"n_inputs": None}, "cannot be made"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(card | change))
        with pytest.raises(BadWeights, match=says):
            open_actor(tmp_path, "mine")
    (tmp_path / "config.json").write_text(json.dumps(card))
    opened = open_actor(tmp_path, "mine")
    obs = torch.randn(3, 5, 4)
    assert torch.equal(opened.module(obs), module(obs))


def test_a_zip_cut_short_and_a_name_without_environment_say_so(tmp_path):
    path = as_sb3(tmp_path / "p.zip", MLP(4, (8, 6), 2, nn.Tanh))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadWeights, match="cut short"):
        open_network(f"sb3:{path}@CartPole-v1")
    with pytest.raises(UnknownName, match="ENVIRONMENT"):
        open_network(f"sb3:{path}")


REAL = """
import sys, torch, warnings
warnings.filterwarnings("ignore")
from stable_baselines3 import PPO
model = PPO("MlpPolicy", sys.argv[1], n_steps=64, seed=0, 
            policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": [16, 8]})
model.save(sys.argv[2])
obs = torch.linspace(-1, 1, 5 * model.observation_space.shape[0]).reshape(5, -1)
found = model.policy.get_distribution(obs).distribution
torch.save({"obs": obs, "out": getattr(found, "logits", found.mean).detach()}, sys.argv[3])
"""


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_what_the_real_stable_baselines3_saves_computes_the_same(tmp_path, environment):
    python = os.environ.get("UNDERSTUDY_SB3")
    if not python:
        pytest.skip("set UNDERSTUDY_SB3 to a Python that has stable-baselines3")
    files = [str(tmp_path / n) for n in ("model.zip", "found.pt")]
    subprocess.run([python, "-c", REAL, environment, *files], check=True)
    theirs = torch.load(files[1], weights_only=True)
    network = open_network(f"sb3:{files[0]}@{environment}")
    ours = network.module(theirs["obs"]).detach()
    if environment == "CartPole-v1":
        ours = ours.log_softmax(-1)
    torch.testing.assert_close(ours, theirs["out"])
