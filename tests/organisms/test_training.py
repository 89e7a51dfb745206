"""Trained weights: the same bits from the same seed, kept whole, never stale, never silently replaced."""

import pytest
import torch
from torch import nn

from understudy.core.records.errors import BadFolder, BadWeights
from understudy.core.records.progress import SILENT
from understudy.organisms._training import cache_folder, learn, weights_from

calls = []


def fit(module, generator):
    calls.append(1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for step in range(20):
        x = torch.randn(64, 6, generator=generator) + 0.1 * torch.randn(64, 6)
        loss = (module(x) - x[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


def build():
    return nn.Linear(6, 3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    calls.clear()
    return tmp_path / "cache"


def made(seed=0):
    return learn("linear", seed, build, fit, 20, SILENT).state_dict()


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_trained_again_from_the_seed_it_has_the_same_bits(cache, monkeypatch, tmp_path):
    first = made()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "other"))
    torch.manual_seed(123)
    assert same(first, made())
    assert len(calls) == 2
    assert not same(first, made(seed=1))


def test_the_cache_saves_the_training(cache):
    first = made()
    assert same(first, made())
    assert len(calls) == 1
    assert [p.suffix for p in cache_folder().iterdir()] == [".safetensors"]


def test_random_numbers_and_threads_are_the_caller_s(cache):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    made()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"\x80\x04pickle"])
def test_a_damaged_file_is_named_and_not_used(cache, damage):
    made()
    (path,) = cache_folder().iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadWeights, match=path.name):
        made()


def test_a_folder_that_cannot_be_written_is_said_before_training(cache):
    cache.mkdir()
    (cache / "organisms").write_text("a file")
    with pytest.raises(BadFolder, match="UNDERSTUDY_CACHE"):
        made()
    assert calls == []


def test_given_weights_are_taken_and_must_fit(cache):
    given = {k: torch.zeros_like(v) for k, v in build().state_dict().items()}
    with weights_from(given):
        assert same(given, made())
    assert calls == []
    assert not cache.exists()
    with weights_from({"weight": torch.zeros(2, 2)}), pytest.raises(BadWeights, match="weight"):
        made()
