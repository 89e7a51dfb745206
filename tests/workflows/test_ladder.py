"""The ladder on text, and the compute that a loss is worth."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer

from understudy.cli.main import main
from understudy.core.records.errors import BadData, BadInput
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.networks import open_network, rungs
from understudy.workflows._data import open_sequences
from understudy.workflows._judging.rungs import LadderSums, ladder_sums, same_tokens
from understudy.workflows.evaluate import EvaluateConfig, evaluate
from understudy.workflows.ladder import LadderConfig, ladder

SMALL = {"documents": 6, "characters": 1500, "context": 128}
TWO = "ladder:stdlib-0.1m=5e11,demo=2e14"


def value(metric) -> float:
    assert isinstance(metric, Measured), metric
    assert metric.low <= metric.value <= metric.high
    return metric.value


@pytest.fixture(scope="module")
def climbed(text):
    return ladder(LadderConfig(data=f"text:{text}", network="demo", checkpoints=True, **SMALL))


def test_rungs_stand_in_the_order_of_compute_and_of_loss(climbed):
    fitted = [r for r in climbed.rungs if r.is_annealed]
    assert [r.name for r in fitted] == [r.name for r in rungs()]
    assert [r.flops for r in climbed.rungs] == sorted(r.flops for r in climbed.rungs)
    bits = [value(r.bits_per_byte) for r in fitted]
    assert bits == sorted(bits, reverse=True)
    assert 0.8 < value(climbed.doubling) < 1
    assert len(climbed.rungs) == len(fitted) + len(rungs(annealed=False))


def test_a_rung_is_worth_its_own_compute(climbed):
    demo = next(r for r in climbed.rungs if r.name == "demo")
    assert value(climbed.bits_per_byte) == value(demo.bits_per_byte)
    assert value(climbed.equivalent_compute) == pytest.approx(demo.flops, rel=1e-6)


def test_the_card_prints_and_reads_back(climbed):
    text = str(climbed)
    assert "saved in the middle of a run" in text
    assert all(r.name in text for r in climbed.rungs)
    assert type(climbed).model_validate_json(climbed.model_dump_json()) == climbed


def test_a_checkpoint_is_worth_less_than_it_cost(text):
    """The reason why they are in no fit."""
    checkpoint = rungs(annealed=False)[-1]
    card = ladder(LadderConfig(data=f"text:{text}", network=checkpoint.name, **SMALL))
    assert value(card.equivalent_compute) < checkpoint.flops


def test_a_family_of_ones_own(text):
    card = ladder(LadderConfig(data=f"text:{text}", rungs=TWO, network="ladder:stdlib-0.3m", **SMALL))
    assert [r.flops for r in card.rungs] == [5e11, 2e14]
    assert 5e11 < value(card.equivalent_compute) < 2e14
    assert isinstance(card.doubling, NotMeasured)
    assert "400 times apart" in str(card)
    tokens = ladder(LadderConfig(data=f"text:{text}", rungs="ladder:stdlib-0.1m@1M,demo@16M", **SMALL))
    assert tokens.rungs[0].flops == 6 * tokens.rungs[0].parameters * 1_000_000


def test_beyond_the_best_rung_is_said(text):
    family = "ladder:stdlib-0.1m=5e11,ladder:stdlib-0.3m=3e12"
    card = ladder(LadderConfig(data=f"text:{text}", rungs=family, network="demo", **SMALL))
    assert isinstance(card.equivalent_compute, NotMeasured)
    assert card.equivalent_compute.not_measured.startswith("more than 3e+12 FLOPs")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("demo", "write NAME=FLOPS"),
        ("demo=a lot,ladder:stdlib-0.1m=1", "is not a number"),
        ("demo=-1,ladder:stdlib-0.1m=1", "above 0"),
        ("demo=1e14", "at least 2 rungs"),
    ],
)
def test_rungs_without_compute_are_refused(asked, says):
    with pytest.raises(BadInput, match=says):
        ladder(LadderConfig(rungs=asked))


def test_rows_that_are_too_long_and_texts_that_are_too_few(text, tmp_path):
    with pytest.raises(BadData, match="pass --context 256"):
        ladder(LadderConfig(data=f"text:{text}", rungs=TWO, context=512, documents=2))
    (tmp_path / "one.txt").write_text("a text\n")
    with pytest.raises(BadData):
        ladder(LadderConfig(data=f"text:{tmp_path}", rungs=TWO))


# -- another tokenizer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renumbered(tmp_path_factory) -> str:
    """The 0.1M rung with its token ids dealt out anew, in the embedding and the tokenizer alike: the same network."""
    folder = tmp_path_factory.mktemp("renumbered")
    network = open_network("ladder:stdlib-0.1m")
    description = json.loads(network.tokenizer.backend_tokenizer.to_str())
    order = torch.randperm(network.vocab_size, generator=torch.Generator().manual_seed(0))
    description["model"]["vocab"] = {word: int(order[i]) for word, i in description["model"]["vocab"].items()}
    for added in description["added_tokens"]:
        added["id"] = int(order[added["id"]])
    weight = network.module.get_input_embeddings().weight
    weight.data[order] = weight.data.clone()
    network.module.save_pretrained(folder)
    network.tokenizer.save_pretrained(folder)
    Tokenizer.from_str(json.dumps(description)).save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config |= {name: int(order[0]) for name in ("bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def test_bits_per_byte_do_not_depend_on_the_numbers_of_tokens(renumbered, text):
    family = f"ladder:stdlib-0.1m=1e12,demo=2e14,{renumbered}=3e12"
    card = ladder(LadderConfig(data=f"text:{text}", rungs=family, **SMALL))
    same = {r.name: value(r.bits_per_byte) for r in card.rungs}
    # Its rows begin with an opening token, as rows of hub networks do, so it is scored at other places.
    assert same[renumbered] == pytest.approx(same["ladder:stdlib-0.1m"], rel=0.03)


def test_a_scorecard_does_not_compare_losses_per_token_of_other_tokens(renumbered, text):
    network, demo = open_network(renumbered), open_network("demo")
    assert same_tokens(demo, open_network("ladder:stdlib-0.1m"))
    assert not same_tokens(network, demo)
    held_out = open_sequences(network, f"text:{text}", "held_out", 32)
    found = ladder_sums(network, held_out, torch.arange(2), SILENT)
    assert isinstance(found, NotMeasured)
    assert "another tokenizer" in found.not_measured


# -- in the scorecard -------------------------------------------------------------------------------------------------


def test_the_ladder_reads_the_very_places_of_the_scorecard(finished):
    """The demo network is a rung: its losses are the clean ones."""
    run = finished
    held_out = open_sequences(run.network, run.config.data, "held_out", run.config.context)
    picked = torch.arange(6)
    found = ladder_sums(run.network, held_out, picked, SILENT)
    assert isinstance(found, LadderSums)
    batch = held_out.batch(picked)
    with torch.no_grad():
        clean = run.network.loss(run.network.forward(batch), batch)
    demo = [r.name for r in rungs()].index("demo")
    assert isinstance(clean, torch.Tensor)
    assert found.losses[demo] == pytest.approx(clean.double().sum(1).numpy(), rel=1e-5)


def test_equivalent_compute_of_a_run_lies_below_its_networks(finished):
    card = evaluate(EvaluateConfig(run=finished.folder.path, sequences=12, rollouts=0))
    own = card.replacement.equivalent_compute
    demo = next(r for r in rungs() if r.name == "demo")
    assert 0 < value(own) < demo.flops
    assert own.unit == "FLOPs"
    worse = [r for r in card.baselines.values() if r.verdict == "worse"]
    assert worse
    for rival in worse:
        theirs = rival.replacement.equivalent_compute
        if isinstance(theirs, Measured):
            assert theirs.value < own.value
        else:
            assert "less than" in theirs.not_measured


def test_the_command(text, capsys):
    flags = ["--documents", "3", "--characters", "500", "--context", "64"]
    assert main(["ladder", "--data", f"text:{text}", "--rungs", TWO, *flags, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in data["rungs"]] == ["ladder:stdlib-0.1m", "demo"]
    assert all(math.isfinite(r["bits_per_byte"]["value"]) for r in data["rungs"])
    assert main(["ladder", "--rungs", "demo"]) == 2
