"""Backward passes that run out of memory, for real: the process may take only so much address space."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import resource
from pathlib import Path
import torch
from torch import nn
from tests.attribution.random_dictionaries import sae
from understudy.attribution import Limits, LocalPass
from understudy.attribution import build as _
from understudy.attribution.build import make_engine
from understudy.attribution.sources import Sources
from understudy.core.batch import Batch
from understudy.core.site import Site
from understudy.networks import AnyModule

torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(8, 256), nn.Linear(256, 256), nn.Linear(256, 3))
net = AnyModule(module, Batch({"input": torch.randn(1, 200, 8)}), {"*": ("batch", "pos", "d")}, name="wide")
local = LocalPass(net, [sae(net, Site("0")), sae(net, Site("1"), seed=1)], net.example())
sources = Sources(local)
event = sources.events[1]
chosen = torch.arange(min(600, len(event)))
wanted = make_engine(local, sources, Limits(batch=20)).event(event, chosen)
engine = make_engine(local, sources, Limits(batch=300))
engine.batch = 300
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + MARGIN * 2**20, resource.RLIM_INFINITY))
try:
    found = engine.event(event, chosen)
except RuntimeError as error:
    print("failed", engine.batch, str(error)[:200])
else:
    print("batch", engine.batch, "same", torch.allclose(found, wanted, rtol=1e-4, atol=1e-5), len(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("margin", [90, 4000])
def test_rows_are_the_same_when_memory_runs_out_and_the_batch_is_halved(margin: int) -> None:
    """300 rows have gradients of 60 MB at each of two leaves, and as much again on the way."""
    code = textwrap.dedent(SCRIPT).replace("MARGIN", str(margin))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.split()
    assert said[0] == "batch", done.stdout
    assert said[3] == "True"
    assert (int(said[1]) < 300) == (margin < 1000), "halved only where memory ran out"
