"""Scores of a graph: where influence ends, and what share of it is explained. They say nothing about behaviour."""

import torch

from understudy.core.graph import Graph
from understudy.core.records.graph import KINDS, GraphScores
from understudy.core.records.metric import Metric, NotMeasured, exact
from understudy.pruning.flow import flow, starts

UNIT = "fraction"


def score_graph(graph: Graph) -> GraphScores:
    """Replacement and completeness scores, and where influence ends.

    On a graph without remainder and biases the first two are those of circuit-tracer 0.4 `compute_graph_scores`.
    Differs from it: the remainder counts as error in both, so that dropping nodes cannot raise a score; what ends at
    biases counts in completeness as explained and in replacement not at all.
    """
    weights = starts(graph)
    mass = graph.rows.mass
    through = flow(graph.rows, weights, mass)
    reached = through + weights
    lost = torch.where(mass > 0, graph.rows.remainder_abs / mass.clamp(min=1e-300), 0.0)
    ends = {kind: float(through[graph.nodes.where(kind)].sum()) for kind in ("input", "bias", "error")}
    remainder = float((reached * lost).sum())
    unexplained = ends["error"] + remainder
    total = float(weights.sum())
    return GraphScores(
        nodes=len(graph),
        edges=graph.n_edges,
        kinds={kind: int(graph.nodes.where(kind).sum()) for kind in KINDS},
        replacement=_share(ends["input"], ends["input"] + unexplained, "nothing flows to inputs, errors or remainder"),
        completeness=_share(float(reached.sum()) - unexplained, float(reached.sum()), "nothing flows"),
        inputs=_share(ends["input"], total, "nothing flows"),
        biases=_share(ends["bias"], total, "nothing flows"),
        errors=_share(ends["error"], total, "nothing flows"),
        remainder=_share(remainder, total, "nothing flows"),
    )


def _share(part: float, whole: float, otherwise: str) -> Metric:
    return exact(part / whole, UNIT, 1) if whole > 0 else NotMeasured(not_measured=otherwise)
