"""Activations on disk: training on them is training without them, and what is not whole is refused."""

import errno
import json
import threading

import pytest
import torch

from tests.workflows.test_harvest import FIRST, POS, SECOND, Data, Net, harvest
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadActivations, BadFolder, BadInput, DiskFull
from understudy.core.weights import load_tensors, save_tensors
from understudy.data import Activations, activations
from understudy.data.activations import digest_of
from understudy.workflows import collect as module
from understudy.workflows._training import shards
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.shards import make_shard
from understudy.workflows._training.stored import BLOCK_ROWS, Stored
from understudy.workflows.collect import CollectConfig, collect, mixed
from understudy.workflows.train import TrainConfig, train

CPU = torch.device("cpu")


class Long(Data):
    """200 sequences of two Gaussian numbers a place."""

    def __init__(self) -> None:
        self.x, self.mask = torch.randn(200, POS, 2, generator=torch.Generator().manual_seed(0)), None

    def __len__(self) -> int:
        return len(self.x)


class Own(Net):
    def sequences(self, split):
        return Long()


@pytest.fixture
def config(tmp_path):
    return CollectConfig(kind="sae", sites="first,second", tokens=150, out=tmp_path / "acts")


def written(tmp_path, n_shards=3, data=None, dtype="float32", seed=0):
    """Shards of a harvest whose first site says where a row is from."""
    h = harvest(data, seed=seed)
    manifest = module.Manifest(
        network="marked", weights="x", data="own", split="train", context=None, skip_first=None, n_sequences=20,
        chunk_sequences=8, seed=seed, dtype=dtype, sites={str(FIRST): 2, str(SECOND): 4},
    )  # fmt: skip
    stored = Activations(RunFolder(tmp_path), manifest)
    tmp_path.mkdir(exist_ok=True)
    for number in range(n_shards):
        stored.write(number, *make_shard(h, stored.dtype, number, None, 1))
    return h, Activations.open(tmp_path)


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert set(x) == set(y)
        assert all(torch.equal(x[s], y[s]) for s in x)


# -- what is served ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("skip", [0, 2])
def test_shards_serve_what_the_harvest_serves_bit_for_bit(tmp_path, padded, skip):
    h, found = written(tmp_path, data=Data(padded))
    stored = Stored(found, h.sites, 0, CPU)
    for number in range(3):
        same(list(stored.batches(number, 7, skip)), list(h.batches(number, 7, skip)))


def test_a_shard_may_hold_many_chunks(tmp_path):
    """Batches end where chunks end, as they do on the fly."""
    h, found = written(tmp_path, n_shards=1)
    found.write(1, *make_shard(h, found.dtype, 1, None, 75))
    assert [s.chunks for s in found.manifest.shards] == [(40,), (40, 40)]
    stored = Stored(Activations.open(tmp_path), h.sites, 0, CPU)
    assert stored.in_order == 3
    for number in range(3):
        same(list(stored.batches(number, 7, 1)), list(h.batches(number, 7, 1)))


def test_every_row_says_where_it_is_from(tmp_path):
    _, found = written(tmp_path, data=Data(padded=True))
    for number in range(3):
        shard = found.shard(number)
        assert torch.equal(torch.stack([shard["sequence"], shard["position"]], 1).float(), shard[str(FIRST)])


@pytest.mark.parametrize("seed", [0, 5])
def test_after_the_first_time_every_block_of_rows_comes_once_an_epoch(tmp_path, seed, monkeypatch):
    """With another seed than the shards', from the beginning. Blocks do not divide the shards' 40 rows."""
    monkeypatch.setattr("understudy.workflows._training.stored.BLOCK_ROWS", 16)
    monkeypatch.setattr("understudy.workflows._training.stored.CHUNK_BYTES", 16 * 8 * 3)
    h, found = written(tmp_path)
    stored = Stored(found, [FIRST], seed, CPU)
    begin = 3 if seed == 0 else 0
    assert stored.in_order == begin
    served = [b[FIRST] for n in range(begin, begin + 3) for b in stored.batches(n, 7)]
    wanted = torch.cat([found.shard(n)[str(FIRST)] for n in range(3)])
    assert sorted(map(tuple, torch.cat(served).tolist())) == sorted(map(tuple, wanted.tolist()))
    again = [b[FIRST] for n in range(begin + 3, begin + 6) for b in stored.batches(n, 7)]
    assert not torch.equal(torch.cat(again), torch.cat(served)), "another epoch, another order"
    assert list(h.sites) == [FIRST, SECOND], "fewer sites may be read than were written"
    assert BLOCK_ROWS == 64


def test_bfloat16_takes_half_the_room_and_rounds(tmp_path):
    h, found = written(tmp_path / "half", dtype="bfloat16")
    (batch, *_), (exact, *_) = Stored(found, h.sites, 0, CPU).batches(1, 50), h.batches(1, 50)
    assert batch[SECOND].dtype == torch.float32
    assert torch.equal(batch[SECOND], exact[SECOND].bfloat16().float())
    assert not torch.equal(batch[SECOND], exact[SECOND])


def test_mixing_by_hand(tmp_path):
    """Shards of 8 sequences of 5 rows: of the 40 x 39 pairs of rows 8 x 5 x 4 are of one sequence."""
    _, found = written(tmp_path, n_shards=2)
    mixing, of_all = mixed(found)
    assert mixing.value == pytest.approx(160 / 1560)
    assert (mixing.n, of_all.n) == (2, 80)
    assert of_all.value == pytest.approx(16 * 20 / (80 * 79)), "16 sequences, each once"


# -- training ---------------------------------------------------------------------------------------------------------


def test_training_on_them_is_training_without_them(config, tmp_path):
    made = collect(config, network=Own())
    assert made["places"] >= 150
    values = {"kind": "sae", "sites": "first,second", "n_latents": 8, "k": 2, "batch": 16, "tokens": 900}
    plain = train(TrainConfig(**values, out=tmp_path / "plain"), network=Own())
    kept = train(TrainConfig(**values, out=tmp_path / "kept", activations=config.out), network=Own())
    assert made["places"] >= 900, "one time through"
    a, b = (load_tensors(t.folder.file("weights.safetensors")) for t in (plain, kept))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert kept.folder.read_json("provenance.json")["activations"]
    longer = TrainConfig(**{**values, "tokens": 2500}, out=tmp_path / "longer", activations=config.out)
    assert train(longer, network=Own()).folder.metrics()[-1]["places"] > made["places"]


def test_what_does_not_fit_is_refused_before_anything_is_made(config, tmp_path):
    collect(config, network=Own())
    values = {"kind": "sae", "sites": "first", "n_latents": 8, "k": 2, "batch": 16, "tokens": 90}

    def refused(match, network=None, **more):
        out = tmp_path / "run"
        with pytest.raises(BadInput, match=match):
            train(TrainConfig(**{**values, "activations": config.out, "out": out, **more}), network=network or Own())
        assert not out.exists()

    other = Own()
    torch.nn.init.zeros_(other.module.second.weight)
    refused("other weights", network=other)
    refused("--data stdlib", data="text:elsewhere")
    refused("whole sequences", objective="kl")
    refused("holds no activations", activations=tmp_path)
    with pytest.raises(BadInput, match="not mixed"):
        collect(config.model_copy(update={"resume": True}), network=other)


# -- damage, and going on ---------------------------------------------------------------------------------------------


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_going_on_after_any_damage_ends_with_the_same_bytes(config, monkeypatch):
    monkeypatch.setattr(module, "chunk_sequences", lambda *a: 16)
    monkeypatch.setattr(shards, "SHARD_BYTES", 16 * POS * 24)
    collect(config, network=Own())
    whole, again = files(config.out), config.model_copy(update={"resume": True})
    assert {"000000.safetensors", "000001.safetensors"} < set(whole)
    first = config.out / "000000.safetensors"

    def cut():
        first.write_bytes(whole[first.name][:100])

    def flip():
        first.write_bytes(whole[first.name][:-1] + b"\x01")

    def kill_between_shard_and_manifest():
        manifest = json.loads(whole["manifest.json"])
        manifest["shards"] = manifest["shards"][:1]
        (config.out / "manifest.json").write_text(json.dumps(manifest))

    for damage in (cut, flip, first.unlink, kill_between_shard_and_manifest):
        damage()
        collect(again, network=Own())
        assert {k: v for k, v in files(config.out).items() if k != "manifest.json"} == {
            k: v for k, v in whole.items() if k != "manifest.json"
        }
        assert json.loads((config.out / "manifest.json").read_text()) == json.loads(whole["manifest.json"])
    more = again.model_copy(update={"tokens": 400})
    more = CollectConfig(**{k: getattr(more, k) for k in ("out", "resume", "tokens")})
    assert collect(more, network=Own())["places"] >= 400
    assert files(config.out)["000000.safetensors"] == whole["000000.safetensors"]


def test_one_shard_is_written_while_the_next_is_harvested(config, monkeypatch):
    monkeypatch.setattr(module, "chunk_sequences", lambda *a: 16)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    write, chunk, harvested, met = Activations.write, Harvest.chunk, threading.Event(), []

    def slow(self, number, *shard):
        if number == 1:
            met.append(harvested.wait(60))
        write(self, number, *shard)

    def noted(self, number):
        if number == 2:
            harvested.set()
        return chunk(self, number)

    monkeypatch.setattr(Activations, "write", slow)
    monkeypatch.setattr(Harvest, "chunk", noted)
    collect(config.model_copy(update={"tokens": 4 * 16 * POS}), network=Own())
    assert met == [True]
    assert len(Activations.open(config.out).manifest.shards) == 4


def test_a_full_disk_leaves_whole_shards(config, monkeypatch):
    monkeypatch.setattr(module, "chunk_sequences", lambda *a: 16)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    save, calls = activations.stream_tensors, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(path, tensors)

    monkeypatch.setattr(activations, "stream_tensors", full)
    with pytest.raises(DiskFull, match="--resume"):
        collect(config, network=Own())
    assert len(Activations.open(config.out).manifest.shards) == 1
    assert collect(config.model_copy(update={"resume": True}), network=Own())["places"] >= 150


def test_hostile_and_damaged_folders_are_refused(tmp_path):
    h, found = written(tmp_path)
    path, whole = found.path(1), found.path(1).read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(BadActivations, match=r"000001\.safetensors has .* in place of .*collect .*--resume"):
        Activations.open(tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadActivations, match="changed after it was written"):
        list(Stored(Activations.open(tmp_path), h.sites, 0, CPU).batches(1, 7))
    for name, tensors in (("site", {"other": torch.zeros(3, 2)}), ("nan", None)):
        tensors = tensors or {k: v.clone() for k, v in load_tensors(found.path(0)).items()}
        if name == "nan":
            tensors[str(SECOND)][4, 1] = torch.nan
        save_tensors(path, tensors)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        digest = digest_of(path)
        manifest["shards"][1] = {"chunks": [40], "bytes": path.stat().st_size, "sha256": digest}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BadActivations, match="does not hold" if name == "site" else "NaN or infinite.*second"):
            list(Stored(Activations.open(tmp_path), h.sites, 0, CPU).batches(1, 7))
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(BadActivations, match="not a manifest of activations"):
        Activations.open(tmp_path)
    with pytest.raises(BadFolder, match=r"understudy collect --out .*none"):
        Activations.open(tmp_path / "none")
