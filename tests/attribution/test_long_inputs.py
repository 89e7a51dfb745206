"""2,000 tokens within the memory that the plan states."""

import json
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import json
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests.attribution.random_dictionaries import card
from understudy.attribution import Limits, LocalPass, build, plan
from understudy.attribution.sources import Sources
from understudy.attribution.targets import output
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.dictionaries import Transcoder
from understudy.networks import HFCausalLM
from understudy.sparsity import Threshold

def memory(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                     num_key_value_heads=2, max_position_embeddings=2048)
network = HFCausalLM(LlamaForCausalLM(config).eval().requires_grad_(False), "random")
ids = torch.randint(0, 300, (1, PLACES))
batch = Batch({"input_ids": ids}, mask=torch.ones_like(ids, dtype=torch.bool))
groups = []
for i, part in enumerate(p for p in network.parts() if p.name.startswith("mlp.")):
    found = network.record(batch, [part.read, part.write])
    acts = {s: v.reshape(-1, v.shape[-1]) for s, v in found.items()}
    made = Transcoder.start((part.read,), (part.write,), 128, Threshold(torch.zeros(128)), acts, i)
    with torch.no_grad():
        pre = torch.cat([block for _, block in made.encode({part.read: acts[part.read]}).pre.chunks()])
        made.sparsity.theta.copy_(pre.quantile(0.95, dim=0))
        made.W_dec.copy_(torch.randn(made.W_dec.shape) * 0.02)
    groups.append(Group([made.requires_grad_(False)]))
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
local = LocalPass(network, groups, batch)
limits = Limits(nodes=128, edges=256)
sources = Sources(local)
planned = plan(local, sources, limits)
graph = build(local, [output(local, 3), output(local, 7)], card(network, groups), limits, sources=sources).graph
computed = graph.nodes.computed
value = graph.nodes.value[computed]
gap = (graph.rows.total[computed].float() - value).abs().max() / value.abs().max()
print(json.dumps({
    "added": memory("VmHWM") - before, "planned": planned.memory_bytes, "rows": planned.rows, "text": str(planned),
    "latents": planned.latents, "exact": graph.card.certificate.exact, "gap": float(gap), "edges": graph.n_edges,
    "kept": int(graph.nodes.where("latent").sum()), "most": planned.edges, "proof": str(graph.card.certificate),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read where Linux says it")
@pytest.mark.parametrize("places", [300, pytest.param(2000, marks=pytest.mark.long)])
def test_plan_holds(places: int) -> None:
    code = textwrap.dedent(SCRIPT).replace("PLACES", str(places))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["exact"], found["proof"]
    assert found["gap"] < 1e-4
    assert found["kept"] == found["rows"] == 128
    assert found["latents"] > places
    assert found["edges"] <= found["most"] + 2 * 256
    assert found["added"] <= found["planned"], found["text"]
    assert found["planned"] < 40 * found["added"], "a plan that says nothing"
