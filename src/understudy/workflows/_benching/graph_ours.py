"""Our graph of one input, timed, in a process of its own: one JSON object on stdin, one on stdout."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from understudy.attribution import Limits, LocalPass, build
from understudy.attribution.targets import likely
from understudy.core.batch import Batch
from understudy.core.graph import Graph
from understudy.core.records.errors import BadData
from understudy.core.records.progress import Progress
from understudy.core.weights import save_tensors
from understudy.workflows._benching.memory import forget_peak, peak_mib, resident_mib
from understudy.workflows.attribute import Question, card_of
from understudy.workflows.evaluate import open_run


def main() -> None:
    """Place 0 has no latents, as in circuit-tracer; every edge that is not 0 is kept."""
    asked = SimpleNamespace(**json.load(sys.stdin))
    torch.set_num_threads(asked.threads)
    run = open_run(asked.run, asked.network)
    ids = torch.tensor([asked.ids])
    batch = Batch({"input_ids": ids}, mask=torch.ones_like(ids, dtype=torch.bool)).skipping(1)
    question = Question(run.network, run.groups, asked.run, "")
    forget_peak()
    loaded, start, cpu = resident_mib(), time.perf_counter(), time.process_time()
    local = LocalPass(run.network, run.groups, batch)
    limits = Limits(nodes=asked.nodes or 2**31, edges=2**31)
    marks = Marks(start)
    made = build(local, lambda _: likely(local), card_of(question, batch), limits, progress=marks)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mib()
    if loaded is None or peak is None:
        raise BadData("this system does not say how much memory a process takes.")
    graph = made.graph
    assert graph.card.certificate is not None
    save_tensors(Path(asked.out), flat(graph))
    found = {
        "seconds": seconds, "cpu_s": cpu, "rows_s": marks.rows_done - start, "peak_mib": peak, "loaded_mib": loaded,
        "rows": int(graph.nodes.computed.sum()), "nodes": len(graph), "edges": graph.n_edges,
        "exact": graph.card.certificate.exact, "row_sum_error": graph.card.certificate.row_sum_error,
    }  # fmt: skip
    print(json.dumps(found))


class Marks(Progress):
    """When the rows were done: what follows is the certificate."""

    def __init__(self, start: float) -> None:
        self.rows_done = start

    def say(self, message: str) -> None:
        self.rows_done = time.perf_counter()


def flat(graph: Graph) -> dict[str, torch.Tensor]:
    """Nodes and edges as plain tensors."""
    nodes = graph.nodes
    columns = {name: getattr(nodes, name).long() for name in ("kind", "dictionary", "latent", "place")}
    outputs = torch.tensor([-1 if t.output is None else t.output for t in graph.card.targets])
    edges = {"sources": graph.rows.sources.long(), "targets": graph.rows.targets, "weights": graph.rows.weights}
    return {**columns, **edges, "outputs": outputs}


if __name__ == "__main__":
    main()
