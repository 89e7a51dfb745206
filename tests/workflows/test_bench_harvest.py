import json

import pytest
import torch

from tests.workflows.test_harvest import FIRST, SECOND, Data, harvest
from understudy.cli.main import main
from understudy.workflows import bench_harvest as module
from understudy.workflows._benching import quiet
from understudy.workflows._training import shards


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setattr(quiet, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(quiet, "encoder_rate", lambda: 100.0)
    monkeypatch.setattr(module, "WIDE", 1e9)


def test_the_bare_pass_runs_what_harvesting_runs_and_stops_where_it_stops():
    h = harvest(sites=(FIRST,))
    batches = module._batches(h, 2)
    rows = torch.cat([b.inputs["x"].reshape(-1, 2) for b in batches])
    assert torch.equal(rows, h.chunk(2)[FIRST])
    ran = []
    module_ = h.network.module
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in module_.named_children()]
    module._bare(h.network, batches, (FIRST,))
    assert ran == ["first"] * len(batches)
    ran.clear()
    module._bare(h.network, batches, (SECOND, FIRST))
    assert ran == ["first", "second"] * len(batches)
    for handle in handles:
        handle.remove()
    assert not module_.first._forward_hooks, "nothing is left behind"


def test_shuffling_is_what_batches_serve():
    h = harvest(Data(padded=True))
    served = list(h.batches(3, 7, 1))
    again = list(h.shuffled(h.chunk(3), 3, 7, 1))
    assert len(served) == len(again)
    assert all(torch.equal(a[s], b[s]) for a, b in zip(served, again) for s in (FIRST, SECOND))


@pytest.mark.filterwarnings("ignore::UserWarning:multiprocessing")
def test_rates_and_shares(still, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000_000)
    asked = ["--data", f"text:{text}", "--context", "32", "--sites", "mlp.1,mlp.2", "--n-latents", "64"]
    asked += ["--batch", "256", "--repeats", "4", "--folder", str(tmp_path)]
    assert main(["bench", "harvest", *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["conclusive"]
    s = found["seconds"]
    assert found["harvest_rate"] == pytest.approx(found["places_a_chunk"] / s["harvest"])
    assert found["bare_rate"] == pytest.approx(found["places_a_chunk"] / s["bare"])
    assert found["bytes_a_place"] == 2 * 2 * 4 * 192, "two sites are read, two written"
    for name in ("ratio", "collect_ratio"):
        low, high = found[f"{name}_interval"]
        assert 0 < low < found[name] < high
    assert list(tmp_path.iterdir()) == [], "shards are removed again"
    assert found["shuffle_of_run"] == pytest.approx(s["shuffle"] / (s["harvest"] + s["shuffle"] + s["train"]))
    assert 0 < found["shuffle_of_run"] < found["shuffle_of_harvest"] < 1


def test_load_is_said(still, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quiet, "busy_cores", lambda: 1.0)
    asked = ["--data", f"text:{text}", "--context", "32", "--sites", "mlp.1", "--n-latents", "32", "--repeats", "4"]
    assert main(["bench", "harvest", *asked]) == 1
    assert "NOT CONCLUSIVE, the machine was not quiet: other work used 1.0 cores" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--kind", "components"], "components trains on whole sequences: nothing is shuffled"),
        (["--kind", "sea"], "Did you mean sae"),
        (["--folder", "/proc"], "--folder /proc cannot be written to"),
        (["--folder", "nowhere"], "--folder nowhere cannot be written to"),
        (["--out", "/proc/nowhere/x.json"], "--out /proc/nowhere/x.json cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_timed(asked, message, capsys):
    assert main(["bench", "harvest", *asked]) == 2
    assert message in capsys.readouterr().err
