"""A graph in words: how exact, how true, and the strongest edges into each target."""

from understudy.core.graph import Graph
from understudy.core.records.metric import Measured
from understudy.core.records.summary import figure, table


def described(graph: Graph, top: int = 12) -> tuple[dict, str]:
    """What a graph says, as plain data and as text: how exact, how true, and the strongest edges into each target."""
    card = graph.card
    proof = card.certificate
    targets = []
    for t in graph.nodes.where("target").nonzero().squeeze(-1).tolist():
        sources, weights = graph.rows.row(t)
        order = weights.abs().argsort(descending=True)[:top].tolist()
        edges = [{"source": graph.name(int(sources[i])), "weight": float(weights[i])} for i in order]
        remainder = float(graph.rows.remainder[t])
        targets.append({"name": graph.name(t), "value": float(graph.nodes.value[t]), "edges": edges, "rest": remainder})
    kinds = {k: int(graph.nodes.where(k).sum()) for k in ("input", "bias", "error", "latent", "target")}
    data = {
        "nodes": kinds,
        "edges": graph.n_edges,
        "certificate": None if proof is None else proof.model_dump(mode="json"),
        "live": card.live.model_dump(mode="json"),
        "targets": targets,
        "note": card.note,
    }
    return data, "\n\n".join([_headline(graph), _truth(graph), *(_edges(t) for t in targets[:3])])


def _headline(graph: Graph) -> str:
    card = graph.card
    counts = ", ".join(f"{int(graph.nodes.where(k).sum()):,} {k}" for k in ("latent", "input", "error", "bias"))
    places = len(card.tokens) or int(graph.nodes.place[~graph.nodes.where("target")].max()) + 1
    said = f"{card.network}, {places} places: {counts} nodes, {graph.n_edges:,} edges"
    return said + (f"\n{card.note}" if card.note else "")


def _truth(graph: Graph) -> str:
    card, lines = graph.card, []
    live = {"slope": card.live.slope, "R2": card.live.r2, "rank": card.live.rank}
    lines.append("edges against live interventions   " + ", ".join(f"{k} {figure(v, 2)}" for k, v in live.items()))
    if isinstance(card.live.r2, Measured):
        rest = f"R2 {figure(card.live.r2_median, 2)}; all edges scaled alike {figure(card.live.r2_scaled, 2)}"
        lines.append(f"  of the median latent             {rest}")
    proof = card.certificate
    if proof is None:
        return "\n".join(lines)
    errors = {"rows": proof.row_sum_error, "clamp": proof.clamp_error, "curvature": proof.second_derivative}
    said = ", ".join(f"{k} {v:.1e}" for k, v in errors.items() if v is not None)
    lines.append(f"bookkeeping {'exact' if proof.exact else 'not exact':<22} {said}")
    for f in proof.frozen:
        share = f"{figure(f.share, 2)} of the targets' live change is lost (squared)"
        lines.append(f"  frozen {f.rule} ({f.operation} in {len(f.modules)} modules) {share}")
    return "\n".join(lines)


def _edges(target: dict) -> str:
    rows = [[e["source"], f"{e['weight']:+.3f}"] for e in target["edges"]]
    rows.append(["all other edges", f"{target['value'] - sum(e['weight'] for e in target['edges']):+.3f}"])
    return f"{target['name']} = {target['value']:.3f}\n" + table(["adds", "by"], rows)
