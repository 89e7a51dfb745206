"""Networks and dictionaries of true shape with random weights: peak memory follows what is held, not the files."""

import subprocess
import sys

import pytest
import torch

from tests.formats import files

D, N, LAYERS = 768, 24_576, 5
ONE_GB = 4 * N * 2 * D / 1e9

SCORE = """
import resource, sys, torch, transformers
from understudy import open_network, score
from understudy.networks import HFCausalLM
torch.manual_seed(0)
torch.set_num_threads(1)
module, tokenizer = transformers.GPT2LMHeadModel(transformers.GPT2Config()), open_network("demo").tokenizer
network = HFCausalLM(module, "gpt2-shaped", tokenizer)
network.named_sites()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
card = score(network, sys.argv[1], data=sys.argv[2], context=16, sequences=2, rollouts=0, fit_places=64,
             held_gb=float(sys.argv[3]), out=sys.argv[4])
assert len(card.dictionaries) == {layers}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 - before, card.replacement.delta_loss.value)
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
