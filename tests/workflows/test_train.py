"""Training through the public function: every kind at every site it can stand, and input that does not fit."""

import pytest
import torch

from understudy.core.records.errors import (
    BadActivations,
    BadData,
    BadInput,
    NonFiniteLoss,
    UnderstudyError,
    UnknownName,
)
from understudy.core.replacement import MEASURED_ERRORS
from understudy.networks import open_network
from understudy.workflows.evaluate import open_run
from understudy.workflows.train import TrainConfig, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:multiprocessing")


@pytest.mark.parametrize(
    ("kind", "sites", "groups", "writes"),
    [
        ("sae", "resid.1,mlp_out.2", 2, 1),
        ("transcoder", "mlp", 4, 1),
        ("transcoder", "attn.1", 1, 1),
        ("crosscoder", "resid.*", 1, 4),
        ("clt", "mlp", 1, 4),
    ],
)
def test_every_kind_trains_and_opens_again(small, kind, sites, groups, writes):
    made = train(TrainConfig(**{**small, "kind": kind, "sites": sites}))
    assert len(made.groups) == groups
    assert all(len(g.writes) == writes for g in made.groups)
    run = open_run(small["out"])
    for mine, saved in zip(made.groups, run.groups, strict=True):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, saved.state_dict()[name])
    lines = made.folder.metrics()
    first, last = (sum(t["fvu"] for t in x["groups"].values()) for x in (lines[0], lines[-1]))
    assert last < first
    assert all(m.sparsity.is_thresholded for g in run.groups for m in g.members)
    if kind != "crosscoder":
        batch = run.network.example()
        recording = run.replacement.record(batch)
        out = run.replacement.run(batch, MEASURED_ERRORS, recording).output.logits
        torch.testing.assert_close(out, run.network(batch).logits, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(small, tmp_path):
    runs = [train(TrainConfig(**{**small, "out": tmp_path / str(i), "seed": s})) for i, s in enumerate((0, 0, 1))]
    a, b, c = (r.groups[0].members[0].W_enc for r in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_batch_topk_ends_in_thresholds_with_the_same_mean_l0(small):
    made = train(TrainConfig(**{**small, "sparsity": "batch_topk"}))
    for conversion in made.conversion.values():
        assert abs(conversion.l0_after - 4) < 1.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": "dmo"}, UnknownName, "demo"),
        ({"kind": "transcodr"}, UnknownName, "transcoder"),
        ({"sites": "mpl"}, UnknownName, "mlp"),
        ({"sites": "mlp_out.1"}, UnderstudyError, "mlp.1"),
        ({"sites": "mlp.9"}, UnknownName, "mlp"),
        ({"kind": "crosscoder", "sites": "resid.1"}, BadInput, "several sites"),
        ({"k": 65}, BadInput, "k=65 is more than n_latents=64"),
        ({"k": 0}, BadInput, "at least 1"),
        ({"lr": -1.0}, BadInput, "lr=-1"),
        ({"lr": float("nan")}, BadInput, "lr=nan"),
        ({"ema": 1.0}, BadInput, "ema"),
        ({"data": "stdlb"}, UnknownName, "stdlib"),
        ({"data": "text:/nowhere/at/all"}, UnderstudyError, "/nowhere/at/all"),
        ({"context": 100_000}, BadData, "more than the 256 tokens"),
    ],
)
def test_input_that_does_not_fit_is_refused_before_anything_is_written(small, change, error, message):
    with pytest.raises(error, match=message):
        train(TrainConfig(**{**small, **change}))
    assert not small["out"].exists()


def test_empty_data_is_refused(small, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BadData):
        train(TrainConfig(**{**small, "data": f"text:{tmp_path / 'empty.txt'}"}))


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN or infinite"), (0.0, "constant")])
def test_activations_that_hold_nothing_are_refused_with_their_site(small, value, says):
    network = open_network("demo")
    with torch.no_grad():
        network.module.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(value)
    with pytest.raises(BadActivations, match=rf"layers\.\d\.\w*.*{says}"):
        train(TrainConfig(**small), network=network)


def test_a_loss_that_explodes_stops_with_the_batch_saved(small):
    with pytest.raises(NonFiniteLoss, match=r"step \d+.*bad_batch"):
        train(TrainConfig(**{**small, "lr": 1e18}))
    assert (small["out"] / "bad_batch.safetensors").exists()
