"""The demo network that ships with the package is the one its card describes."""

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import understudy
from understudy.data import Stdlib, pack, tokenise

FOLDER = Path(understudy.__file__).parent / "networks/demo/stdlib-2m"


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def network():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_card_agrees_with_the_files(card, network):
    assert card["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert card["weights_bytes"] == (FOLDER / "model.safetensors").stat().st_size
    assert card["training"]["flops"] == 6 * card["parameters"] * card["training"]["tokens"]
    assert card["curve"]["points"][-1][0] == card["training"]["tokens"]
    assert len(card["curve"]["points"]) <= 60
    assert f"{card['held_out_bits_per_byte']['value']:.3f}" in (FOLDER / "README.md").read_text()


def test_the_card_claims_what_was_set_out(card):
    figure, xz = card["held_out_bits_per_byte"], card["xz_bits_per_byte"]
    assert figure["low"] < figure["value"] < figure["high"] < xz["low"]
    assert figure["value"] <= 1.45


def test_the_config_reads_in_transformers_4_and_5(network):
    written = json.loads((FOLDER / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10000.0
    assert AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto").dtype == torch.bfloat16
    assert network.lm_head.weight is network.model.embed_tokens.weight


@torch.no_grad()
def test_it_predicts_held_out_modules_better_than_xz(network):
    """A few small modules only, on whatever Python runs this; the card's figure is over all of them."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    documents = [document for document in Stdlib("held_out") if 4_000 < document.n_bytes < 12_000][:6]
    packed = pack(tokenise(documents, tokenizer), context=256)
    batch = packed.batch(slice(None))
    logits = network(input_ids=batch.inputs["input_ids"]).logits
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="sum")
    bits_per_byte = float(nats) / math.log(2) / int(packed.scored_bytes().sum())
    squeezed = [len(lzma.compress(document.text.encode(), preset=9 | lzma.PRESET_EXTREME)) for document in documents]
    assert bits_per_byte < 1.7
    assert bits_per_byte < 8 * sum(squeezed) / sum(document.n_bytes for document in documents)
