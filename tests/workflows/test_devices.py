"""Devices: a run on another device gives the figures of the CPU, and nothing is left behind on the way."""

import sys

import pytest
import torch

from tests.other_device import DEVICE, Elsewhere, Mixed, OtherDevice
from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.records.scorecard import Report
from understudy.networks import open_network
from understudy.networks.opening import find_device
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import TrainConfig, train


def pipeline(small: dict, network: Network, **options) -> Report:
    """Train, evaluate and report, as small as they come."""
    few = {"data": f"{small['data']}/c[ms]*.py", "tokens": 1_000, "context": 16, "n_latents": 32}
    train(TrainConfig(**{**small, **few, **options}), network=network)
    evaluate(EvaluateConfig(run=small["out"], sequences=4, rollouts=2), network=network)
    return report(ReportConfig(run=small["out"], features=4, sequences=4), network=network)


KINDS = [
    {"sites": "mlp.1", "skip_first": 1, "ema": 0.9},
    {"kind": "sae", "sites": "resid.1", "sparsity": "batch_topk"},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_nothing_mixes_devices(small, tmp_path, options, monkeypatch):
    """The whole pipeline on a device of which a CPU tensor that gets in is an error.

    Other kernels are chosen there (attention, the optimiser), so figures agree to rounding, not to the bit.
    """
    fused = sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(*fused, lambda: ["cpu", DEVICE.type], raising=False)
    monkeypatch.setattr("understudy.workflows._judging.arms.FIT_PLACES", 1024)
    network = open_network("demo")
    here = pipeline(small, network, **options)
    with OtherDevice() as mode:
        network.to(DEVICE)
        there = pipeline({**small, "out": tmp_path / "there"}, network, **options)
    assert mode.n_ops > 1000
    a, b = here.scorecard, there.scorecard
    assert b.replacement.loss_clean.value == pytest.approx(a.replacement.loss_clean.value, abs=1e-5)
    assert b.dictionaries[0].fvu.value == pytest.approx(a.dictionaries[0].fvu.value, rel=0.02)
    assert b.replacement.delta_loss.value == pytest.approx(a.replacement.delta_loss.value, rel=0.05)
    assert b.rollout.loss_of_network_text.value == pytest.approx(a.rollout.loss_of_network_text.value, abs=1e-3)
    assert b.baselines.keys() == a.baselines.keys()
    for name, rival in a.baselines.items():
        other = b.baselines[name].replacement.delta_loss.value
        assert other == pytest.approx(rival.replacement.delta_loss.value, rel=0.05), name
    assert there.features.keys() == here.features.keys()


def test_a_tensor_left_behind_is_noticed():
    network = open_network("demo")
    with OtherDevice():
        network.to(DEVICE)
        batch = network.example()
        assert isinstance(network(batch).logits, Elsewhere)
        ids = batch.inputs["input_ids"].cpu()
        with pytest.raises(Mixed):
            network(Batch({"input_ids": ids}))
        with pytest.raises(Mixed):
            torch.ones(3) + torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="numpy"):
            torch.ones(3, device=DEVICE).numpy()


def test_a_batch_moves_whole():
    with OtherDevice():
        ones = torch.ones(2, 3, dtype=torch.long)
        batch = Batch({"x": ones}, mask=ones.bool(), targets=ones, tags={"document": ones}).to(DEVICE)
        moved = [batch.inputs["x"], batch.mask, batch.targets, batch.tags["document"]]
        assert all(isinstance(x, Elsewhere) for x in moved)
        assert batch.to("cpu").mask.device.type == "cpu"


def test_devices_by_name():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UnknownName, match=r"'gpu' is not a known device"):
        find_device("gpu")
    with pytest.raises(BadInput, match=r"cuda:99.*finds \d+ GPUs here. Use --device auto or cpu"):
        find_device("cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: what CUDA computes is not tested")
def test_a_gpu_gives_the_figures_of_the_cpu(small, tmp_path):
    """The same run on both, not bit for bit: sums are taken in another order."""
    here = pipeline(small, open_network("demo"))
    there = pipeline({**small, "out": tmp_path / "there"}, open_network("demo", device="cuda"))
    a, b = here.scorecard, there.scorecard
    assert b.replacement.loss_clean.value == pytest.approx(a.replacement.loss_clean.value, abs=1e-3)
    assert b.replacement.delta_loss.value == pytest.approx(a.replacement.delta_loss.value, rel=0.1, abs=0.05)
    assert {d.site for d in b.dictionaries} == {d.site for d in a.dictionaries}
    for name, rival in a.baselines.items():
        if name in ("zero", "mean", "position_mean", "linear_map"):
            other = b.baselines[name].replacement.delta_loss.value
            assert other == pytest.approx(rival.replacement.delta_loss.value, rel=0.02, abs=0.01), name
