"""open_network: every way in, and what each failure says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from understudy.core.records.errors import BadInput, BadWeights, UnderstudyError, UnknownName
from understudy.networks import AnyModule, HFCausalLM, networks, open_network

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 31, "num_hidden_layers": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]):
    network = open_network(f"hf:{folder}")
    assert isinstance(network, HFCausalLM)
    assert network.name == f"hf:{folder}"
    assert network.tokenizer is None
    assert not any(p.requires_grad for p in network.module.parameters())
    assert open_network(f"hf:{folder}", dtype="bfloat16").module.dtype == torch.bfloat16
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.skipif(not networks(), reason="this copy has no demo network")
def test_the_demo_is_opened_as_any_folder():
    card = networks()[0]
    demo, same = open_network("demo"), open_network(f"hf:{card.path}", dtype="float32")
    batch = demo.example()
    assert demo.module.dtype == torch.float32
    assert torch.equal(demo(batch).logits, same(batch).logits)
    assert sum(p.numel() for p in demo.module.parameters()) == card.parameters
    assert demo.tokenizer.decode(demo.tokenizer.encode("import os\n")) == "import os\n"
    assert [p.name for p in demo.parts()][:3] == ["attn.0", "mlp.0", "attn.1"]


def test_listing_does_not_import_torch():
    code = "import sys, understudy.networks as n; n.networks(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dmeo", r"'dmeo' is not a known network.*A network is named as one of: demo"),
        ("openai/gpt2", r"write hf:openai/gpt2"),
        ("hf:/nowhere/at/all", r"there is no folder /nowhere/at/all"),
        ("demo:nothing", r"'demo:nothing' is not a known network"),
        ("py:my_networks", r"write py:PACKAGE.MODULE:FUNCTION"),
        ("py:no_such_module:f", r"there is no Python module 'no_such_module'"),
        ("py:json:lodas", r"'lodas' is not a known function of json. Did you mean loads"),
    ],
)
def test_unknown_names_teach(spec: str, message: str):
    with pytest.raises(UnknownName, match=message):
        open_network(spec)


def test_a_folder_without_its_scheme(folder: Path):
    with pytest.raises(UnknownName, match=f"write hf:{folder}"):
        open_network(str(folder))


def test_an_unreachable_hub_says_what_to_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("understudy.networks.hf_opening._hub_is_reachable", lambda: False)
    with pytest.raises(UnknownName, match=r"is the hub within reach\? Without network.*hf:FOLDER.*`demo`"):
        open_network("hf:nobody-at-all/no-such-model")


def damage_nothing(weights: Path) -> None:
    (weights.parent / "config.json").unlink()


def damage_json(weights: Path) -> None:
    (weights.parent / "config.json").write_text("{")


def cut_short(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_within_header(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:60])


def garble(weights: Path) -> None:
    weights.write_bytes(b"not a network at all, but long enough to be one")


def pickle_it(weights: Path) -> None:
    torch.save({"a": torch.zeros(3)}, weights)


def only_pickles(weights: Path) -> None:
    weights.unlink()
    torch.save({"a": torch.zeros(3)}, weights.parent / "pytorch_model.bin")


def change_config(**changes: int):
    def change(weights: Path) -> None:
        path = weights.parent / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (damage_nothing, BadInput, "has no config.json"),
        (damage_json, BadInput, "config.json is not JSON"),
        (cut_short, BadWeights, r"has \d+ bytes where its header promises \d+: it was cut short"),
        (cut_within_header, BadWeights, "cut short within its header"),
        (garble, BadWeights, "is not a safetensors file"),
        (pickle_it, BadWeights, "is a pickle under another name: refused"),
        (only_pickles, BadWeights, "only pytorch_model.bin, a pickle that can run code"),
        (change_config(num_hidden_layers=3), BadWeights, r"9 parameters would be random, e.g. model.layers.2"),
        (change_config(hidden_size=32), BadWeights, "do not fit the sizes in config.json: their shapes differ"),
        (change_config(model_type="resnet"), BadInput, "not a causal language model that transformers knows"),
    ],
)
def test_damaged_folders_say_what_is_wrong(folder: Path, damage, error: type[Exception], message: str):
    damage(folder / "model.safetensors")
    with pytest.raises(error, match=message):
        open_network(f"hf:{folder}")


def test_a_network_that_looks_ahead_is_refused(tmp_path: Path):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = BertConfig(**SIZES, is_decoder=False, initializer_range=1.0)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="not a causal language model"):
        open_network(f"hf:{tmp_path}")


def test_unknown_dtype(folder: Path):
    with pytest.raises(UnknownName, match=r"'bfloat61' is not a known dtype. Did you mean bfloat16"):
        open_network(f"hf:{folder}", dtype="bfloat61")


MINE = """
import torch
from understudy import AnyModule, Batch
def network():
    return AnyModule(torch.nn.Linear(3, 2), Batch({"input": torch.zeros(2, 3)}), ("batch", "d"), name="mine")
def module():
    return torch.nn.Linear(3, 2)
def broken():
    return 1 / 0
"""


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_own_networks.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    assert isinstance(open_network("py:my_own_networks:network"), AnyModule)
    with pytest.raises(BadInput, match=r"returned a Linear, not a Network.*\n.*AnyModule\(module, example=Batch"):
        open_network("py:my_own_networks:module")
    with pytest.raises(UnderstudyError, match=r"raised ZeroDivisionError: .* \(my_own_networks.py, line 9\)"):
        open_network("py:my_own_networks:broken")
