"""The ladder that ships with the package is what its cards say."""

import json
import math
import subprocess
import sys
from itertools import combinations

import pytest
import torch

from understudy.core.records.errors import UnknownName
from understudy.data import Stdlib, pack, tokenise
from understudy.networks import networks, open_network, rungs
from understudy.networks.rungs import LADDER_FOLDER

EVERY = (*rungs(), *rungs(annealed=False))


def card(rung) -> dict:
    return json.loads((rung.path / "card.json").read_text())


def bits_per_byte(rung) -> float:
    return card(rung)["held_out_bits_per_byte"]["value"]


def test_rungs_come_in_the_order_of_compute_and_the_demo_is_one():
    flops = [r.flops for r in rungs()]
    assert flops == sorted(flops)
    assert len(set(flops)) == len(flops) >= 3
    assert "demo" in [r.name for r in rungs()]
    assert all(r.is_annealed for r in rungs())
    assert not any(r.is_annealed for r in rungs(annealed=False))


@pytest.mark.parametrize("rung", EVERY, ids=lambda r: r.name)
def test_a_card_agrees_with_its_files(rung):
    network = open_network(rung.name)
    assert rung.parameters == sum(p.numel() for p in network.module.parameters())
    assert rung.flops == 6 * rung.parameters * rung.tokens
    assert card(rung)["weights_bytes"] == (rung.path / "model.safetensors").stat().st_size


def test_more_compute_is_better_and_un_annealed_weights_are_worse_than_their_compute():
    """What makes it a ladder; and why checkpoints of one run are none."""
    values = [bits_per_byte(r) for r in rungs()]
    assert values == sorted(values, reverse=True)
    x = [math.log(r.flops) for r in rungs()]
    y = [math.log(v) for v in values]
    for checkpoint in rungs(annealed=False):
        at = math.log(checkpoint.flops)
        if not x[0] <= at <= x[-1]:
            continue
        i = next(i for i in range(1, len(x)) if x[i] >= at)
        line = y[i - 1] + (at - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])
        assert math.log(bits_per_byte(checkpoint)) > line


def test_a_rung_reads_what_its_card_says():
    """On some held-out modules: the same text to every rung gives losses in the order of the cards, where rungs are
    twice apart in compute; a few modules do not tell the two largest apart."""
    held_out = [d.cut(0, 3000) for d in Stdlib("held_out")][:8]
    found = []
    for rung in rungs():
        network = open_network(rung.name)
        packed = pack(tokenise(held_out, network.tokenizer), 128)
        batch = packed.batch(slice(None))
        with torch.no_grad():
            loss = network.loss(network.forward(batch), batch)
        assert isinstance(loss, torch.Tensor)
        found.append(float(loss.sum()) / math.log(2) / int(packed.scored_bytes().sum()))
    for (a, cheap), (b, dear) in combinations(zip(found, rungs(), strict=True), 2):
        assert dear.flops < 2 * cheap.flops or a > b
    for value, rung in zip(found, rungs(), strict=True):
        assert value == pytest.approx(bits_per_byte(rung), abs=0.35)


def test_all_of_it_is_small():
    assert sum(p.stat().st_size for p in LADDER_FOLDER.rglob("*") if p.is_file()) <= 12e6


def test_rungs_are_no_demos_and_wrong_names_are_helped():
    assert not [card for card in networks() if "ladder" in card.name]
    with pytest.raises(UnknownName, match=r"ladder:stdlib-0\.1m"):
        open_network("ladder:stdlib-0.1")
    for name in ("ladder:", "ladder:../demo/stdlib-2m"):
        with pytest.raises(UnknownName, match="rung of the ladder"):
            open_network(name)


def test_listing_the_ladder_imports_no_torch():
    code = "import sys; from understudy.networks import rungs; rungs(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
