"""Networks and dictionaries of true shape with random weights: peak memory follows what is held, not the files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.formats import files
from tests.workflows.real_sizes import CASES
from understudy.core.records.scorecard import Scorecard
from understudy.formats import open_source

D, N, LAYERS = 768, 24_576, 5
ONE_GB = 4 * N * 2 * D / 1e9

SCORE = """
import re, sys, torch, transformers
from understudy import open_network, score
from understudy.networks import HFCausalLM
torch.manual_seed(0)
torch.set_num_threads(1)
def peak():  # of this process; ru_maxrss begins at what the parent held
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e6
module, tokenizer = transformers.GPT2LMHeadModel(transformers.GPT2Config()), open_network("demo").tokenizer
network = HFCausalLM(module, "gpt2-shaped", tokenizer)
network.named_sites()
before = peak()
card = score(network, sys.argv[1], data=sys.argv[2], context=16, sequences=2, rollouts=0, fit_places=64,
             held_gb=float(sys.argv[3]), out=sys.argv[4])
assert len(card.dictionaries) == {layers}
print(peak() - before, card.replacement.delta_loss.value)
"""


def peak(folder, text, held_gb: float, out) -> tuple[float, float]:
    """GB that scoring added to the process's peak, and the delta loss it found."""
    code = SCORE.replace("{layers}", str(LAYERS))
    args = [sys.executable, "-c", code, str(folder), f"text:{text}", str(held_gb), str(out)]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    added, loss = map(float, done.stdout.split()[-2:])
    return added, loss


@pytest.mark.long
def test_weights_are_streamed_and_never_all_in_memory(text, tmp_path):
    """gpt2's shape, SAEs of 24,576 latents (0.15 GB each, as public ones): room for one, then for all.

    Writes 0.8 GB and scores it twice.
    """
    for i in range(LAYERS):
        g = torch.Generator().manual_seed(i)
        W = torch.randn(N, D, generator=g) / D**0.5
        tensors = {"W_enc": W.T, "W_dec": W, "b_enc": torch.full((N,), -2.0), "b_dec": torch.zeros(D)}
        files.saelens(tmp_path / "saes" / f"{i}", tensors, f"blocks.{i}.hook_resid_pre")
    few, loss = peak(tmp_path / "saes", text, 1.1 * ONE_GB, tmp_path / "few")
    every, same = peak(tmp_path / "saes", text, 2 * LAYERS * ONE_GB, tmp_path / "all")
    assert loss == same
    # The one that is held, the file's own copy while it is read, and rivals of 4,096 latents for each site.
    assert few < 3 * ONE_GB + LAYERS * 4 * 2 * 4096 * D / 1e9 + 0.5
    assert every > few + (LAYERS - 3) * ONE_GB


def script(*args: object) -> str:
    """`tests.workflows.real_sizes` in a process of its own; what it prints."""
    command = [sys.executable, "-m", "tests.workflows.real_sizes", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_commands_run_on_real_sizes_in_the_memory_they_need(text, tmp_path, name):
    """`sites`, `score` and `export` on a folder of the network's true shape. Largest: 6 GB of disk, 9 GB of memory."""
    case, folder = CASES[name], tmp_path / name
    script("make", name, folder)
    weights = sum(p.stat().st_size for p in Path(folder / "network").glob("*.safetensors")) / 1e9
    found = json.loads(script("run", name, folder, text))
    print({verb: (round(one["s"]), round(one["peak_gb"], 2)) for verb, one in found.items()})
    # torch and the data, the network, one dictionary that is held and what reading one takes beside it; to score, its
    # rivals as well: at most as many random latents, two matrices of the width and one of the neurons for each site.
    plain = 1.0 + weights + 3 * case.one_gb
    neurons = 4 * 4 * case.d
    rivals = len(case.layers) * 4 * case.d * (2 * min(4096, case.n_latents) + 3 * case.d + neurons) / 1e9
    assert found["sites"]["peak_gb"] < 1.0 + 1.2 * weights
    assert found["score"]["peak_gb"] < plain + rivals
    assert found["export"]["peak_gb"] < plain
    card = Scorecard.model_validate(found["score"]["said"])
    assert [d.n_latents for d in card.dictionaries] == [case.n_latents] * len(case.layers)
    assert found["export"]["said"]["format"] == case.format
    entries = open_source(str(folder / "exported"))
    assert {(e.format, e.n_latents) for e in entries} == {(case.format, case.n_latents)}
    assert len(entries) == len(case.layers)
