"""How long a large graph takes to save, open, score and prune, and how much memory.

python benchmarks/graph_prune.py [nodes] [edges]     10^5 and 10^7 unless given; run it on a quiet machine
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from understudy.core.graph import Graph, Nodes, Rows
from understudy.core.records.graph import DictionaryCard, GraphCard, TargetCard
from understudy.pruning import influence, prune, prune_by_thresholds, score_graph

LAYERS, TARGETS, PLACES = 24, 10, 1000


def made(n: int, edges: int) -> Graph:
    """Latents in layers, each with the same number of random earlier sources; a tenth of its mass is remainder."""
    torch.manual_seed(0)
    inner = n - PLACES - TARGETS
    layer = torch.arange(inner) * LAYERS // inner
    first = PLACES + torch.searchsorted(layer, layer)
    per_row = edges // (inner + TARGETS)
    offsets = torch.cat([torch.zeros(PLACES), torch.full((inner + TARGETS,), per_row)]).long().cumsum(0)
    before = torch.cat([first, torch.full((TARGETS,), n - TARGETS)])
    sources = (torch.rand(len(before), per_row) * before[:, None]).int().sort(1).values.flatten()
    weights = torch.randn(len(sources)) / per_row
    kind = torch.cat([torch.zeros(PLACES), torch.full((inner,), 3), torch.full((TARGETS,), 4)]).to(torch.uint8)
    number = torch.cat([torch.full((PLACES,), -1), torch.arange(inner), torch.arange(TARGETS)]).int()
    owner = torch.cat([torch.full((PLACES,), -1), layer, torch.full((TARGETS,), -1)]).to(torch.int16)
    rest = (kind >= 3) * 0.1
    nodes = Nodes(
        kind=kind, dictionary=owner, latent=number, place=torch.arange(n, dtype=torch.int32) % PLACES,
        site=owner.clamp(min=0), value=torch.rand(n), threshold=torch.zeros(n),
    )  # fmt: skip
    card = GraphCard(
        network="random", network_fingerprint="0", run=None, sites=[f"layers.{i}" for i in range(LAYERS)],
        dictionaries=[
            DictionaryCard(
                kind="transcoder", reads=[f"layers.{i}:in"], writes=[f"layers.{i}:out"], n_latents=n, fingerprint=str(i)
            )
            for i in range(LAYERS)
        ],
        shape=(PLACES,), targets=[TargetCard(name=f"t{i}", weight=1 / TARGETS) for i in range(TARGETS)],
    )  # fmt: skip
    return Graph(nodes, Rows(torch.cat([torch.zeros(1).long(), offsets]), sources, weights, rest, rest), card)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: str, work) -> object:
    start = time.perf_counter()
    out = work()
    print(f"{what:<22} {time.perf_counter() - start:7.2f} s   peak {peak():6.0f} MiB", flush=True)
    return out


def main(n: int = 10**5, edges: int = 10**7) -> None:
    """Makes the graph in a process of its own, so that the peak below is that of the work."""
    print(f"torch threads {torch.get_num_threads()}, start {peak():.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.acg"
        child = torch.multiprocessing.get_context("spawn").Process(target=_save, args=(n, edges, path))
        child.start()
        child.join()
        graph = timed("open", lambda: Graph.open(path))
        assert isinstance(graph, Graph)
        print(graph)
        timed("check every edge", graph.checked)
        timed("influence", lambda: influence(graph))
        timed("scores", lambda: score_graph(graph))
        timed("prune to 1,000 nodes", lambda: prune(graph, nodes=1000))
        pruned = timed("prune by thresholds", lambda: prune_by_thresholds(graph))
        print(pruned)


def _save(n: int, edges: int, path: Path) -> None:
    made(n, edges).save(path)


if __name__ == "__main__":
    main(*(int(float(a)) for a in sys.argv[1:]))
