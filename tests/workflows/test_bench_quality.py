import json
import os
import sys
from pathlib import Path

import pytest
import torch

from understudy.cli.main import main
from understudy.core.records.errors import BadInput, BadWeights
from understudy.core.records.metric import Measured
from understudy.workflows import bench_quality as module
from understudy.workflows._benching import quality_arms, step_rows
from understudy.workflows._benching.quality_arms import OURS, PEERS, Cell, Library, Task, cell
from understudy.workflows._benching.step_ours import SITE, Shape, trainer
from understudy.workflows._benching.step_peers import pythons
from understudy.workflows.bench_quality import BenchQualityConfig, bench_quality, reconstruction, walk

SMALL = Shape(16, 256, 4, 64)
TEXT = "16x256x4x64"
TASK = Task(SMALL, 40, 300, 0)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "CHOOSING", 200)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ours(task, folder, factor=1.0):
    found = cell(OURS, factor, task, Library(None), folder)
    assert isinstance(found, Cell), found
    return found


def fvu(x, hat):
    found = reconstruction(x, hat).fvu(module.Bootstrap(len(x)))
    assert isinstance(found, Measured), found
    return found


def hat_cell(hat):
    return Cell(1.0, 4.0, "made", hat)


# -- the figure -------------------------------------------------------------------------------------------------------


def test_fvu_of_known_answers():
    """The mean is 1, the rows themselves 0, and noise of a quarter of the variance a quarter."""
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) + 5
    mean = x.mean(0).expand_as(x)
    assert fvu(x, mean).value == pytest.approx(1, abs=1e-6)
    assert fvu(x, x).value == 0
    half = fvu(x, mean + (x - mean) / 2)
    assert half.value == pytest.approx(0.25, abs=1e-6)
    assert half.low <= half.value <= half.high
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    noisy = fvu(x, x + 0.5 * noise)
    assert noisy.low < 0.25 < noisy.high


def test_the_verdict_is_ours_minus_the_best():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    sums = {name: reconstruction(x, x * (1 - e)) for name, e in ((OURS, 0.3), ("good", 0.1), ("bad", 0.5))}
    arms = {name: {"fvu": s.fvu(module.Bootstrap(500)).model_dump()} for name, s in sums.items()}
    found = module._verdict(arms, sums)
    assert (found["best_peer"], found["verdict"]) == ("good", "worse")
    assert found["difference"]["value"] == pytest.approx(arms[OURS]["fvu"]["value"] - arms["good"]["fvu"]["value"])
    del sums["good"]
    assert module._verdict(arms, sums)["verdict"] == "better"
    sums["bad"] = sums[OURS]
    arms["bad"] = arms[OURS]
    same = module._verdict(arms, sums)
    assert (same["difference"]["value"], same["verdict"]) == (0, "not told apart")


# -- rows -------------------------------------------------------------------------------------------------------------


def test_held_out_rows_follow_the_training_rows():
    """Of the same directions, and none of them is trained on."""
    stream = step_rows.rows(16, 64)
    trained = torch.cat([next(stream) for _ in range(40)])
    after = torch.cat([next(stream) for _ in range(5)])[:300]
    assert torch.equal(TASK.held_out(), after)
    assert not (trained[:, None] == after[None, :50]).all(-1).any()


# -- our arm ----------------------------------------------------------------------------------------------------------


def test_ours_is_the_trainer_of_train_on_those_rows(tmp_path):
    """Trained by hand on the same rows, the same held-out rows come back, at the learning rate that is named."""
    found = ours(TASK, tmp_path, 2.0)
    stream = step_rows.rows(16, 64)
    batches = [next(stream) for _ in range(40)]
    by_hand = trainer(SMALL, 40, torch.cat(batches), lr=0.016, seed=1)
    for x in batches:
        by_hand.train_step({SITE: x})
    with torch.no_grad():
        held = TASK.held_out()
        hat = by_hand.groups[0].reconstruct({SITE: held})[SITE]
    assert found.lr == pytest.approx(0.016)
    assert found.l0 <= 4
    torch.testing.assert_close(found.hat, hat, rtol=0, atol=1e-5)
    spread = held.var(0, correction=0).sum() * len(held)
    assert module._fvu(held, hat) == pytest.approx(float((held - hat).square().sum() / spread), rel=1e-4)


def test_our_start_is_not_the_directions_that_are_to_be_found(monkeypatch, tmp_path):
    """Latents start at places, each a sum of many directions; from random rows of the rows' own seed they would be the
    directions themselves."""
    started = []
    real = quality_arms.trainer

    def kept(*args, **options):
        made = real(*args, **options)
        started.append(made.groups[0].members[0].W_dec.detach().clone())
        return made

    monkeypatch.setattr(quality_arms, "trainer", kept)
    shape = Shape(64, 256, 4, 64)
    ours(Task(shape, 1, 10, 0), tmp_path)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(256, 64, generator=generator), dim=-1)
    assert float((started[0] @ directions.T).max()) < 0.8
    rows = next(step_rows.rows(64, 4096))
    alone = torch.nn.functional.normalize(rows, dim=-1) @ directions.T
    assert float((started[0] @ directions.T).amax(1).mean()) < float(alone.amax(1).mean()) + 0.02, "places know no more"


def test_more_places_give_lower_fvu(tmp_path):
    after = {}
    for steps in (1, 100):
        task = TASK._replace(steps=steps)
        after[steps] = module._fvu(task.held_out(), ours(task, tmp_path).hat)
        (tmp_path / "understudy-1.json").unlink()
    assert after[100] < 0.8 * after[1]


def test_a_cell_is_read_again_and_another_task_is_refused(tmp_path):
    first = ours(TASK, tmp_path)
    before = (tmp_path / "understudy-1.safetensors").stat().st_mtime_ns
    assert torch.equal(ours(TASK, tmp_path).hat, first.hat)
    assert (tmp_path / "understudy-1.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match=r"another task \(steps: 40 -> 41\)"):
        cell(OURS, 1.0, TASK._replace(steps=41), Library(None), tmp_path)
    quality_arms.save_tensors(tmp_path / "understudy-1.safetensors", {"hat": torch.zeros(3, 16)})
    with pytest.raises(BadInput, match="holds \\(3, 16\\), not the 300 rows of 16"):
        cell(OURS, 1.0, TASK, Library(None), tmp_path)
    quality_arms.save_tensors(tmp_path / "understudy-1.safetensors", {"hat": torch.full((300, 16), torch.nan)})
    assert "diverged" in cell(OURS, 1.0, TASK, Library(None), tmp_path)
    (tmp_path / "understudy-1.safetensors").write_bytes(b"cut")
    with pytest.raises(BadWeights):
        cell(OURS, 1.0, TASK, Library(None), tmp_path)


# -- learning rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "tried"),
    [(1, [1 / 3, 1, 3]), (9, [1, 3, 9, 27]), (1 / 9, [1 / 27, 1 / 9, 1 / 3, 1, 3]), (1000, [1, 3, 9, 27, 81])],
)
def test_the_grid_goes_on_until_the_best_has_neighbours(best, tried):
    """Errors that grow with the distance from `best`; one far away is left at the edge after `most`."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))

    def train(factor):
        return hat_cell(x + 0.1 * abs(torch.log(torch.tensor(factor / best))))

    assert sorted(walk(train, x, 3.0, 5)) == pytest.approx(tried)


def test_a_rate_that_diverges_is_the_worst_and_what_cannot_run_is_asked_once():
    x = torch.randn(50, 4)
    grid = walk(lambda f: "diverged" if f > 1 else hat_cell(x * 0.9 * f), x, 3.0, 5)
    assert sorted(grid) == pytest.approx([1 / 3, 1, 3])
    assert grid[3.0][1] == float("inf")
    asked = []
    assert walk(lambda f: asked.append(f) or "no such library", x, 3.0, 5)[1.0][0] == "no such library"
    assert asked == [1.0]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_was_compared(monkeypatch, tmp_path, capsys):
    """Nobody else is installed: each says so, and nothing is concluded."""
    monkeypatch.delenv("UNDERSTUDY_PEERS", raising=False)
    words = ["--shape", TEXT, "--steps", "30", "--held", "200", "--peers", "--peers-folder", str(tmp_path)]
    assert main(["bench", "quality", *words, "--out", str(tmp_path / "q.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "q.json").read_text())
    assert (found["places"], found["held_out"]) == (30 * 64, 200)
    row = found["arms"][OURS]
    assert row["lr"] == pytest.approx(8e-3 * row["factor"])
    assert row["fvu"]["low"] < row["fvu"]["value"] < row["fvu"]["high"]
    assert row["fvu"]["n"] == 200
    assert len(row["grid"]) >= 3
    assert min(p["fvu_choosing"] for p in row["grid"]) == next(
        p["fvu_choosing"] for p in row["grid"] if p["lr"] == row["lr"]
    )
    assert all("make bench-peers" in found["arms"][a]["not_measured"] for a in PEERS)
    assert found["verdict"] == "nobody to compare with"
    assert main(["bench", "quality", *words[:6]]) == 0
    assert "add --peers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "16x256"}, "--shape '16x256': write width x latents x k x places"),
        ({"ratio": 1.0}, "a factor above 1"),
        ({"held": 1}, "at least 2 held-out rows"),
        ({"most": 2}, "at least 3 learning rates"),
        ({"out": "/proc/nowhere/x.json"}, "cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        bench_quality(BenchQualityConfig(**options))


# -- others -----------------------------------------------------------------------------------------------------------


def test_a_library_that_cannot_run_says_why(tmp_path):
    """This python has torch and no sae_lens."""
    with Library(Path(sys.executable)) as library:
        assert cell("sae-lens", 1.0, TASK, library, tmp_path) == "ModuleNotFoundError: No module named 'sae_lens'"
        process = library._process
    assert process is not None
    assert process.poll() is not None, "it is not left behind"
    assert not list(tmp_path.iterdir())


def test_every_arm_is_in_the_script():
    text = quality_arms.SCRIPT.read_text()
    assert all(f'"{arm}": ("{library}"' in text for arm, library in PEERS.items())


@pytest.mark.long
@pytest.mark.parametrize("arm", PEERS)
def test_a_real_library_learns_the_same_rows(arm, tmp_path):
    """Its FVU falls below that of the mean, at k latents at most: what it writes back is of the right rows."""
    folder = os.environ.get("UNDERSTUDY_PEERS_FOLDER")
    python = pythons(Path(folder) if folder else None)[PEERS[arm]]
    if python is None:
        pytest.skip(f"{PEERS[arm]} is not installed: set UNDERSTUDY_PEERS or UNDERSTUDY_PEERS_FOLDER")
    task = TASK._replace(steps=100)
    with Library(python) as library:
        found = cell(arm, 9.0 if arm != "eai-sparsify" else 1.0, task, library, tmp_path)
    assert isinstance(found, Cell), found
    assert 0 < found.l0 <= 4
    held = task.held_out()
    assert 0 < module._fvu(held, found.hat) < 0.9
    assert module._fvu(held.roll(1, 0), found.hat) > 1, "the same rows in another order are not what it wrote"
