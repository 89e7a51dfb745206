import json
import subprocess
import sys
import time

import pytest
import torch

from understudy.cli.main import main
from understudy.core.narrow import InBf16, InInt8, Narrow
from understudy.core.pattern import Pattern
from understudy.core.records.errors import BadInput
from understudy.workflows import bench_step as module
from understudy.workflows._benching import quiet, step_peers
from understudy.workflows._benching.step_ours import SITE, Ours, Shape
from understudy.workflows._benching.step_peers import Peer, pythons
from understudy.workflows._benching.step_rows import rows
from understudy.workflows._benching.stopwatch import Stopwatch
from understudy.workflows.bench_step import BenchStepConfig, bench_step

SMALL = Shape(16, 256, 4, 64)
TEXT = "16x256x4x64"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def still(monkeypatch):
    """A machine that is quiet, whatever runs beside the tests."""
    monkeypatch.setattr(quiet, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(quiet, "encoder_rate", lambda: 100.0)
    monkeypatch.setattr(module, "WIDE", 1e9)


def test_a_row_says_what_was_measured(still, tmp_path):
    found = bench_step(BenchStepConfig(shapes=TEXT, repeats=4, seconds=0, threads=1, out=tmp_path / "a" / "b.json"))
    assert found["conclusive"]
    assert found["exit_code"] == 0
    assert [r["dtype"] for r in found["rows"]] == ["fp32", "bf16", "int8"]
    for row in found["rows"]:
        assert row["shape"] == {"d": 16, "n": 256, "k": 4, "batch": 64}
        assert row["ratio_floor"] > 0
        low, high = row["ratio_floor_interval"]
        assert len(row["ratio_floor_each"]) == 4
        assert 0 < low < row["ratio_floor"] < high
        assert min(row["ratio_floor_each"]) <= row["ratio_floor"] <= max(row["ratio_floor_each"]), "a mean of turns"
        assert 0 < row["fvu"] < 2
        assert row["peers_s"] == {}
    fp32, *narrow = found["rows"]
    assert {"encode", "top-k", "decode", "gradients", "upkeep", "Adam", "rest"} == set(fp32["parts"])
    for row in narrow:
        assert {"narrow copy", "encode", "candidates"} <= set(row["parts"])
        assert row["candidates"] >= 4
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == json.loads(json.dumps(found))


@pytest.mark.parametrize("search", ["bf16", "int8"])
def test_searches_train_the_same_dictionary(search):
    """Steps of the real trainer: the same latents are kept, so weights agree to rounding."""
    pair = [Ours(SMALL, each) for each in ("fp32", search)]
    assert [o.trainer.groups[0].members[0].search for o in pair] == ["fp32", search]
    for _ in range(20):
        fvu = [float(o.step(o.next())["fvu"]) for o in pair]
        assert fvu[0] == pytest.approx(fvu[1], rel=1e-3)
    assert fvu[0] < 0.9, "it learns"
    torch.testing.assert_close(*(o.trainer.groups[0].members[0].W_enc for o in pair), rtol=0, atol=2e-2)


def test_what_is_timed_is_the_step_of_train():
    """Decoder rows keep length 1, silence is counted, Adam has been run: nothing is left out."""
    ours = Ours(SMALL, "fp32")
    before = [p.detach().clone() for p in ours.trainer.groups[0].parameters()]
    terms = ours.step(ours.next())
    assert set(terms) == {"fvu", "l0"}
    assert float(terms["l0"]) == pytest.approx(4, abs=0.5)
    assert all(not torch.equal(a, b) for a, b in zip(before, ours.trainer.groups[0].parameters()))
    member = ours.trainer.groups[0].members[0]
    torch.testing.assert_close(member.W_dec.norm(dim=1), torch.ones(256))
    assert int((ours.trainer.silent[0][0] == 64).sum()) > 0
    assert ours.trainer.places == 64


def test_the_floor_multiplies_what_the_step_multiplies():
    """W of the trainer itself, and rows as it normalises them: their product holds the values that are kept."""
    ours = Ours(SMALL, "fp32")
    rows_ = ours.next()
    x, W, b = ours.encoder(rows_)
    assert (x.shape, W.shape) == ((64, 16), (256, 16))
    z = ours.trainer.groups[0].encode({SITE: rows_})[0].z
    torch.testing.assert_close(z.values, (x @ W.T + b)[z.rows, z.ids].relu())


def test_load_is_said_and_concludes_nothing(still, monkeypatch, capsys):
    monkeypatch.setattr(quiet, "busy_cores", lambda: 1.3)
    asked = ["bench", "step", "--shapes", TEXT, "--repeats", "4", "--seconds", "0", "--search", "fp32"]
    assert main([*asked, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["conclusive"]
    assert found["complaints"] == ["other work used 1.3 cores"]
    assert found["rows"][0]["ours_s"] > 0, "figures are shown all the same"
    assert main(asked) == 1
    assert "NOT CONCLUSIVE, the machine was not quiet: other work used 1.3 cores" in capsys.readouterr().out


def test_a_ratio_that_wavers_concludes_nothing():
    watch = quiet.Watch()
    watch.busy, watch.rates = [0.0], [100.0, 50.0]
    steady = [1.0, 1.02, 0.99, 1.01]
    wild = [0.5, 1.0, 2.0, 1.5]

    def row(ours, peer):
        timed = {"ratio_floor": 1.0, "ratio_floor_interval": (0.5, 2.0)}
        peers = {"sae-lens": timed | {"ratio_floor_each": peer}, "eai-sparsify": {"not_measured": "why"}}
        return timed | {"shape": SMALL._asdict(), "dtype": "int8", "ratio_floor_each": ours, "peers": peers}

    assert module._complaints(watch, [row(steady, steady)]) == [], "the machine may be slow now and then"
    assert module._complaints(watch, [row(wild, steady)]) == ["16x256x4x64 int8 took 0.50 to 2.00 floors in 4 turns"]
    assert module._complaints(watch, [row(steady, wild)]) == [
        "16x256x4x64 sae-lens took 0.50 to 2.00 floors in 4 turns"
    ]
    watch.busy = [1.0]
    assert module._complaints(watch, [row(steady, steady)]) == ["other work used 1.0 cores"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": "16x256"}, "write width x latents x k x places"),
        ({"shapes": "16xax4x64"}, "write width x latents x k x places"),
        ({"shapes": "16x4x8x64"}, "k at most the number of latents"),
        ({"shapes": "0x4x1x64"}, "every number is at least 1"),
        ({"search": "fp8"}, "some of fp32,bf16,int8"),
        ({"out": "/proc/nowhere/x.json"}, "cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        bench_step(BenchStepConfig(**options))


# -- parts ------------------------------------------------------------------------------------------------------------


class Worker:
    def outer(self):
        time.sleep(0.02)
        self.inner()

    @staticmethod
    def inner():
        time.sleep(0.05)


def test_time_is_counted_once_and_everything_is_put_back():
    watch, worker, before = Stopwatch(), Worker(), dict(vars(Worker))
    with watch.on(Worker, "outer", "outer"), watch.on(Worker, "inner", "inner"), watch.part("rest"):
        worker.outer()
    assert 0.02 <= watch.seconds["outer"] < watch.seconds["inner"]
    assert watch.seconds["inner"] >= 0.05
    assert dict(vars(Worker)) == before
    with pytest.raises(ZeroDivisionError), watch.on(worker, "outer", "x"):
        raise ZeroDivisionError
    assert "outer" not in vars(worker)


@pytest.mark.parametrize("search", ["bf16", "int8"])
def test_watching_changes_nothing(search):
    """Kept latents, weights and the functions themselves are as before."""
    plain, watched = Ours(SMALL, search), Ours(SMALL, search)
    found = Narrow.__init__, InBf16.multiply, InInt8.multiply, Pattern.gather_sum
    for _ in range(3):
        plain.step(plain.next())
        with watched.watched(Stopwatch()):
            watched.step(watched.next())
    for a, b in zip(plain.trainer.groups[0].parameters(), watched.trainer.groups[0].parameters()):
        assert torch.equal(a, b)
    assert found == (Narrow.__init__, InBf16.multiply, InInt8.multiply, Pattern.gather_sum)


# -- others -----------------------------------------------------------------------------------------------------------


def test_everybody_gets_the_same_rows():
    first, again, other = next(rows(128, 500)), next(rows(128, 500)), next(rows(128, 500, seed=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.square().sum(-1).mean() == pytest.approx(1.0, abs=0.35)


def test_a_library_that_is_missing_says_so(still, monkeypatch, tmp_path):
    monkeypatch.delenv("UNDERSTUDY_PEERS", raising=False)
    assert set(pythons(tmp_path).values()) == {None}
    found = bench_step(
        BenchStepConfig(shapes=TEXT, search="fp32", repeats=4, seconds=0, peers=True, peers_folder=tmp_path, threads=1)
    )
    (row,) = found["rows"]
    assert set(row["peers_s"]) == {"sae-lens", "eai-sparsify", "dictionary-learning"}
    assert all("make bench-peers" in said for said in row["peers_s"].values())
    assert row["ratio_fastest_peer"] is None


def test_a_library_that_cannot_run_says_why():
    """This python has torch and no sae_lens."""
    with Peer("sae-lens", step_peers.Path(sys.executable), SMALL) as peer:
        assert peer.reason == "ModuleNotFoundError: No module named 'sae_lens'"
    assert peer._process.poll() is not None, "it is not left behind"


def test_a_peer_that_dies_says_so(monkeypatch, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text('print(\'{"ready": true, "empty_mib": 1.0}\', flush=True)\ninput()\ninput()\nraise SystemExit(9)')
    monkeypatch.setattr(step_peers, "SCRIPT", script)
    with Peer("sae-lens", step_peers.Path(sys.executable), SMALL) as peer:
        assert peer.reason == ""
        assert peer.step() != peer.step()
        assert peer.reason == "its process ended with code 9 (memory?)"
        found = module._beside(peer, SMALL, BenchStepConfig())
        assert found == {"not_measured": "its process ended with code 9 (memory?)"}


@pytest.mark.parametrize("keeps", [False, True])
def test_others_run_with_our_settings_for_memory_only_where_that_was_asked_for(monkeypatch, tmp_path, keeps):
    """The command line sets them for itself, in its own environment among others."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    script = tmp_path / "says.py"
    script.write_text(
        "import os\ninput()\n"
        "print('{\"error\": \"%s %s\"}' % tuple(map(os.environ.get, ['THP_MEM_ALLOC_ENABLE', 'MALLOC_MMAP_MAX_'])))"
    )
    monkeypatch.setattr(step_peers, "SCRIPT", script)
    with Peer("sae-lens", step_peers.Path(sys.executable), SMALL, keeps_memory=keeps) as peer:
        assert peer.reason == ("1 0" if keeps else "None None")


def test_every_library_is_in_the_script():
    text = step_peers.SCRIPT.read_text()
    assert all(f'"{library}":' in text for library in step_peers.LIBRARIES)
    assert subprocess.run([sys.executable, "-m", "py_compile", str(step_peers.SCRIPT)], check=False).returncode == 0
