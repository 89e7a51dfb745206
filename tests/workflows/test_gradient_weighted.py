"""`--objective gradient_weighted` through `train`: it learns, and is stopped and resumed to the same bits."""

import pytest
import torch

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadInput
from understudy.workflows.train import TrainConfig, train

SHORT = {"kind": "sae", "sites": "resid.1", "objective": "gradient_weighted", "tokens": 12_000, "batch": 128}


def test_it_lowers_what_it_weighs_and_resumes_to_the_same_bits(small, tmp_path):
    values = {**small, **SHORT, "checkpoint_s": 0.0}
    whole = train(TrainConfig(**{**values, "out": tmp_path / "whole"}))
    lines = [next(iter(line["groups"].values())) for line in whole.folder.metrics()]
    assert lines[-1]["weighted"] < lines[0]["weighted"]
    train(TrainConfig(**values))
    folder = RunFolder(small["out"])
    (small["out"] / "groups.json").unlink()
    folder.drop_checkpoint(folder.checkpoints()[-1])
    resumed = train(TrainConfig(out=small["out"], resume=True))
    for name, value in whole.groups[0].state_dict().items():
        assert torch.equal(value, resumed.groups[0].state_dict()[name])


@pytest.mark.parametrize("change", [{"local_weight": -1.0}, {"local_weight": float("nan")}])
def test_weights_that_are_none_are_refused(small, change):
    with pytest.raises(BadInput, match="local_weight"):
        train(TrainConfig(**{**small, **SHORT, **change}))
