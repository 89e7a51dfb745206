"""Comparing graphs: what is said to be the same must be, and nothing is concluded on a busy machine."""

import os
import sys
from pathlib import Path

import pytest
import torch

from understudy.core.records.errors import BadInput, UnderstudyError
from understudy.core.records.graph import KINDS
from understudy.workflows._benching.quiet import Quiet
from understudy.workflows.bench_graph import BenchGraphConfig, agreement, bench_graph

PLACES, LAYERS = 3, 2
PYTHON = os.environ.get("UNDERSTUDY_PEERS", "")


def both() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One graph twice: as ours flattens it, and as circuit-tracer lays it out (features, errors, tokens, outputs)."""
    torch.manual_seed(0)
    features = torch.tensor([[0, 1, 5], [0, 2, 4], [1, 1, 9], [1, 2, 3]])  # layer, place, latent
    outputs = torch.tensor([40, 41])
    n = len(features) + LAYERS * PLACES + PLACES + len(outputs)
    computed = [*range(len(features)), n - 2, n - 1]
    edges = torch.zeros(n, n)
    edges[computed] = torch.randn(len(computed), n) * (torch.rand(len(computed), n) > 0.4)
    edges[:, n - 2 :] = 0
    edges[:, len(features)] = edges[:, len(features) + PLACES] = 0  # errors at place 0 are no nodes there
    theirs = {"edges": edges, "features": features, "outputs": outputs}
    order = [*range(n - 2 - PLACES, n - 2), *range(len(features), n - 2 - PLACES), 2, 0, 3, 1, n - 2, n - 1]
    names = ["input"] * PLACES + ["error"] * LAYERS * PLACES + ["latent"] * 4 + ["target"] * 2
    place = [*range(PLACES), *(list(range(PLACES)) * LAYERS), *features[[2, 0, 3, 1], 1].tolist(), -1, -1]
    latent = [-1] * (n - 6) + features[[2, 0, 3, 1], 2].tolist() + [0, 1]
    dictionary = [-1] * (n - 6) + features[[2, 0, 3, 1], 0].tolist() + [-1, -1]
    kept = edges[order][:, order]
    t, s = kept.nonzero(as_tuple=True)
    columns = {"kind": [KINDS.index(k) for k in names], "dictionary": dictionary, "latent": latent, "place": place}
    mine = {k: torch.tensor(v) for k, v in columns.items()}
    return mine | {"sources": s, "targets": t, "weights": kept[t, s], "outputs": outputs}, theirs


def test_one_graph_laid_out_twice_agrees() -> None:
    assert agreement(*both(), PLACES) == (1.0, 0.0)


def test_a_changed_edge_and_a_missing_latent_show() -> None:
    mine, theirs = both()
    theirs["edges"] = theirs["edges"] * 1.5
    assert agreement(mine, theirs, PLACES)[1] == pytest.approx(1 / 3)
    mine, theirs = both()
    latents = (mine["kind"] == KINDS.index("latent")).nonzero().squeeze(-1)
    mine["latent"][latents[0]] = 77
    same, differ = agreement(mine, theirs, PLACES)
    assert same == pytest.approx(3 / 5)
    assert differ == 0, "only what both have is compared"


def test_busy_machine_is_said() -> None:
    assert Quiet(busy_cores=0.0, encoder_gflops=[40, 42]).complaint == ""
    assert "1.5 cores" in Quiet(busy_cores=1.5, encoder_gflops=[40, 42]).complaint
    assert "20 to 42" in Quiet(busy_cores=0.0, encoder_gflops=[20, 42]).complaint


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"peer": "/nowhere/python"}, "pip install circuit-tracer"),
        ({"peer": sys.executable, "peer_batch": "a"}, "whole numbers"),
        ({"peer": sys.executable, "run": "/nowhere"}, "no run at"),
    ],
)
def test_bad_questions(given: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        bench_graph(BenchGraphConfig.checked({"run": "x", **given}))


@pytest.mark.skipif(bool(PYTHON), reason="there is a Python with circuit-tracer")
def test_python_without_the_library_says_what_it_lacks(finished) -> None:
    with pytest.raises(UnderstudyError, match=r"failed: .*(circuit_tracer|huggingface_hub)"):
        bench_graph(BenchGraphConfig(run=str(finished.folder.path), peer=Path(sys.executable), places=8, rounds=1))


@pytest.mark.skipif(not PYTHON, reason="UNDERSTUDY_PEERS names no python with circuit-tracer")
def test_same_job_as_circuit_tracer(finished) -> None:
    found = bench_graph(BenchGraphConfig(run=str(finished.folder.path), places=12, rounds=1, peer_batch="32"))
    (row,) = found.rows
    assert row.same_latents == 1
    assert row.edges_differ < 1e-5
    assert row.row_sum_error < 1e-4
