"""Cells that share a harvest end as each would alone; one that diverges leaves the others alone."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from tests.workflows.grid.conftest import tiny_grid
from tests.workflows.test_resume import processes as processes
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadData, BadFolder, BadInput, UnknownName
from understudy.core.records.frontier import Frontier
from understudy.core.records.metric import Measured
from understudy.core.records.progress import SILENT
from understudy.core.weights import load_tensors
from understudy.workflows._grid.bench import open_bench
from understudy.workflows._grid.cells import Cell
from understudy.workflows._grid.stage import Stage
from understudy.workflows._grid.together import blocks, cell_bytes
from understudy.workflows.ablate import AblateConfig, ablate
from understudy.workflows.evaluate import open_run
from understudy.workflows.train import TrainConfig, train

CELLS = [
    Cell("topk", 4, 48),
    Cell("topk", 4, 48, lr_factor=0.5),
    Cell("batch_topk", 4, 48),
    Cell("jumprelu", 4, 32),
    Cell("gated", 0.1, 48),
    Cell("relu", 0.1, 48, seed=1),
]


def stage(values: dict) -> Stage:
    config = AblateConfig(**values)
    config.out.mkdir()
    return Stage(*open_bench(config), RunFolder(config.out), config, SILENT)


@pytest.fixture(scope="module")
def ran(text, tmp_path_factory) -> Stage:
    made = stage(tiny_grid(text, tmp_path_factory.mktemp("together")))
    made.run(CELLS)
    return made


def test_every_cell_ends_as_training_it_alone_does(ran, tmp_path):
    for i, cell in enumerate(CELLS):
        config = ran.train_config(cell)
        alone = train(config.model_copy(update={"out": tmp_path / str(i)}))
        mine, other = (load_tensors(p / "weights.safetensors") for p in (config.out, alone.folder.path))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) for k in mine), cell.name
        assert [line["places"] for line in RunFolder(config.out).metrics()] == [
            line["places"] for line in alone.folder.metrics()
        ]


def test_a_cell_is_a_run_that_the_other_commands_open(ran):
    run = open_run(ran.train_config(CELLS[2]).out)
    (group,) = run.groups
    assert group.members[0].sparsity.name == "threshold"
    assert not RunFolder(run.folder.path).checkpoints()


def test_the_sums_are_those_of_the_metrics_themselves(ran):
    """L0, FVU and delta loss of one cell, computed here by hand from the dictionary in its folder."""
    cell = CELLS[0]
    run = open_run(ran.train_config(cell).out)
    batch = ran.judging.sequences.batch(ran.judging.judged)
    site = ran.bench.site
    acts = {site: run.network.record(batch, [site])[site].float()}
    group = run.groups[0]
    z = group.encode(acts)[0].z
    hat = group.write([z], acts)[site]
    real = torch.ones(acts[site].shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
    x, y = acts[site][real].double(), hat[real].double()
    fvu = (x - y).square().sum() / (x - x.mean(0)).square().sum()
    lost = run.network.loss(run.replacement.run(batch).output, batch) - run.network.loss(
        run.network.forward(batch), batch
    )
    scored = (batch.targets != -100) & real
    found = next(d for d in ran.drawn([cell])["thresholds"])
    assert found.l0[0] == pytest.approx(float(z.l0()[real].double().mean()))
    assert found.values["fvu"][0] == pytest.approx(float(fvu), rel=1e-5)
    assert found.values["delta_loss"][0] == pytest.approx(float(lost[scored].double().mean()), rel=1e-4)
    on = torch.zeros(48, dtype=torch.bool)
    on[z.keep(real.reshape(-1)[z.rows], by="occurrence").ids.unique()] = True
    assert found.dead == pytest.approx(float((~on).double().mean()))


def test_rules_that_compete_are_judged_in_both_forms(ran):
    forms = {cell.rule: set(ran.sums(cell)) for cell in CELLS}
    assert forms["topk"] == forms["batch_topk"] == {"thresholds", "trained"}
    assert forms["jumprelu"] == forms["gated"] == {"thresholds"}


def test_a_cell_that_diverges_stops_alone_and_says_where(tiny):
    made = stage(tiny)
    good, bad = Cell("topk", 4, 48), Cell("topk", 4, 48, lr_factor=1e20)
    made.run([bad, good])
    assert made.selection_loss(bad) is None
    assert made.sums(bad) == {}
    assert made.selection_loss(good) is not None
    (line,) = made.stopped([good, bad])
    assert "lr1e+20" in line
    assert "model.layers.1:out" in line
    assert "at step" in line
    made.run([bad, good])  # both are done


def test_blocks_are_of_one_seed_and_fit():
    configs = [TrainConfig(n_latents=64, k=4, seed=seed, out=f"x/{seed}{i}") for i in range(3) for seed in (0, 1)]
    size = cell_bytes(configs[0], 10)
    found = blocks(configs, 10, 2 * size)
    assert [[c.seed for c in b] for b in found] == [[0, 0], [0], [1, 1], [1]]
    assert len(blocks(configs, 10, 1e12)) == 2
    assert [len(b) for b in blocks(configs, 10, 1.0)] == [1] * 6


# -- the command ------------------------------------------------------------------------------------------------------


def small(tiny: dict, **more) -> AblateConfig:
    return AblateConfig(**{**tiny, "rules": "topk,relu", "l0": "3,6", "lr_factors": "1,2", **more})


def _ablate(values: dict) -> None:
    ablate(AblateConfig(**values))


@pytest.fixture(scope="module")
def frontier(text, tmp_path_factory) -> tuple[dict, Frontier]:
    values = tiny_grid(text, tmp_path_factory.mktemp("ablate"))
    values |= {"seeds": 2, "rules": "topk,relu", "l0": "3,6", "lr_factors": "1,2", "places": 8_000}
    made = ablate(AblateConfig(**values))
    assert isinstance(made, Frontier)
    return values, made


def test_the_frontier_holds_what_was_asked(frontier):
    _, card = frontier
    assert card.rules == ["topk", "relu"]
    assert [r.rule for r in card.rates] == ["topk", "relu"]
    assert set(card.rates[0].losses) == {"1", "2"}
    assert all(r.losses[f"{r.factor:g}"] == min(r.losses.values()) for r in card.rates)
    topk = [p for p in card.points if p.rule == "topk" and p.form == "trained"]
    assert {(p.level, p.seed) for p in topk} == {(3, 0), (3, 1), (6, 0), (6, 1)}
    assert {p.lr for p in topk} == {card.rates[0].factor * 8e-3}
    assert all(p.l0.value <= p.level for p in topk)
    best = [a for a in card.at if a.verdict == "best"]
    assert len({(a.form, a.what, a.l0) for a in best}) == len(best)
    assert all(a.beyond_best.value >= 0 for a in card.at if isinstance(a.beyond_best, Measured))
    assert Frontier.model_validate_json(card.model_dump_json()) == card


def test_denser_codes_rebuild_better(frontier):
    """A control with one possible answer: in every seed k = 6 beats k = 3 of the same rule."""
    _, card = frontier
    for form in ("thresholds", "trained"):
        found = {(p.level, p.seed): p for p in card.points if (p.rule, p.form) == ("topk", form)}
        for seed in (0, 1):
            sparse, dense = found[3.0, seed], found[6.0, seed]
            assert dense.fvu.value < 0.9 * sparse.fvu.value
            assert dense.delta_loss.value < sparse.delta_loss.value


def test_resuming_a_finished_ablation_gives_the_same_card_and_trains_nothing(frontier, monkeypatch):
    values, card = frontier
    monkeypatch.setattr("understudy.workflows._grid.stage.train_together", lambda *a: pytest.fail("trained again"))
    assert ablate(AblateConfig(**{**values, "resume": True})) == card


@pytest.mark.slow
def test_killed_twice_an_ablation_ends_in_the_same_figures(frontier, processes, tmp_path):
    """In the first stage and in the second, each time between two checkpoints of a pass."""
    values, card = frontier
    values = {**values, "out": tmp_path / "grid", "checkpoint_s": 0.1}
    for n_done in (0, 4):
        child = processes.Process(
            target=_ablate, args=({**values, "resume": (values["out"] / "config.yaml").exists()},)
        )
        child.start()
        _wait(values["out"], n_done, child)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    done = len(list(values["out"].glob("cells/*/sums.safetensors")))
    assert 4 <= done < len({p.run for p in card.points})
    child = processes.Process(target=_ablate, args=({**values, "resume": True},))
    child.start()
    child.join()
    assert child.exitcode == 0
    again = Frontier.model_validate_json((values["out"] / "frontier.json").read_text())
    assert _values(again) == pytest.approx(_values(card), rel=1e-5)  # another process, another number of threads


def _values(card: Frontier) -> list[float]:
    return [a.value.value for a in card.at if isinstance(a.value, Measured)]


def _wait(out, n_done: int, child) -> None:
    for _ in range(12_000):
        assert child.is_alive(), "it ended before it was killed"
        if len(list(out.glob("cells/*/sums.safetensors"))) >= n_done and list(out.glob("cells/*/checkpoints/[1-9]*")):
            return
        time.sleep(0.01)
    raise AssertionError("no progress in two minutes")


def test_a_plan_is_printed_and_nothing_is_left(tiny):
    said = ablate(small(tiny, plan=True))
    assert isinstance(said, str)
    assert "2 rules on resid.1" in said
    assert "about" in said
    assert "topk: k or aimed L0 3, 6" in said
    assert not tiny["out"].exists()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"rules": "topk,topkk"}, UnknownName, "topk"),
        ({"rules": "topk,topk"}, BadInput, "each once"),
        ({"l0": "8"}, BadInput, "at least 2"),
        ({"l0": "8,x"}, BadInput, "whole numbers"),
        ({"l0": "4,400"}, BadInput, "n_latents=48"),
        ({"site": "resid.*"}, BadInput, "3 sites"),
        ({"lr_factors": "0,1"}, BadInput, "above 0"),
        ({"kind": "components", "site": "mlp"}, BadInput, "components"),
        ({"context": 4096}, BadData, "context"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tiny, wrong, error, says):
    with pytest.raises(error, match=says):
        ablate(small(tiny, **wrong))
    assert not tiny["out"].exists()


def test_a_folder_in_use_and_a_changed_value_are_refused(frontier):
    values, _ = frontier
    with pytest.raises(BadFolder, match="--resume"):
        ablate(AblateConfig(**values))
    with pytest.raises(BadInput, match=r"l0: '3,6' -> '3,9'"):
        ablate(AblateConfig(**{**values, "l0": "3,9", "resume": True}))


def test_frontier_json_is_what_is_returned(frontier):
    values, card = frontier
    assert Frontier(**json.loads((values["out"] / "frontier.json").read_text())) == card
    assert np.isfinite(_values(card)).all()
