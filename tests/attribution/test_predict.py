"""What a graph says will happen, by hand and against a network in which it is exactly so."""

import pytest
import torch

from tests.attribution.test_edges import B, TwoLayers, latents_at, made
from tests.graphs import card as toy_card
from understudy.attribution.predict import predict
from understudy.core.graph import Graph, Nodes, Rows
from understudy.core.replacement import Replacement
from understudy.edits import intervene


def small_graph() -> Graph:
    """Nodes: an input, latents a (0.5) and b (4), one that is silent, and a target of 4."""
    sources, weights = ([0], [1, 0], [1], [1, 2, 3, 0]), ([0.5], [2.0, 2.0], [-1.0], [1.0, 3.0, 0.0, 0.0])
    counts = torch.tensor([0, *map(len, sources)])
    columns = {"dictionary": [-1, 0, 0, 0, -1], "latent": [-1, 7, 8, 9, 0], "place": [0] * 5, "site": [0, 1, 1, 1, -1]}
    nodes = Nodes(
        kind=torch.tensor([0, 3, 3, 3, 4], dtype=torch.uint8), value=torch.tensor([1.0, 0.5, 4.0, -1.0, 4.0]),
        threshold=torch.zeros(5), **{k: torch.tensor(v) for k, v in columns.items()},
    )  # fmt: skip
    rows = Rows(
        torch.cat([torch.zeros(1).long(), counts.cumsum(0)]), torch.tensor([s for row in sources for s in row]).int(),
        torch.tensor([w for row in weights for w in row]), torch.zeros(5), torch.zeros(5),
    )  # fmt: skip
    return Graph(nodes, rows, toy_card(1, ["x"], [1.0]))


def test_paths_by_hand() -> None:
    """a adds 2 to b, which is 4; a and b add 1 and 3 to the target. A silent latent hands nothing on."""
    graph = small_graph()
    a, b = 1, 2
    assert predict(graph, {a: -1.0}).direct.tolist() == [-1.0]
    # Without a, b falls by 2 of its 4: half of what it adds to the target goes.
    assert predict(graph, {a: -1.0}).total.tolist() == [-1.0 - 3.0 * 2 / 4]
    assert predict(graph, {b: 1.0}).total.tolist() == [3.0]
    assert predict(graph, {a: -1.0, b: 0.0}).total.tolist() == [-1.0], "what is held stays where it is put"
    assert predict(graph, {}).total.tolist() == [0.0]


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_edges_into_the_output_of_a_linear_network_are_what_happens(factor: float) -> None:
    built = made(TwoLayers(), 4)
    network, graph = built.local.network, built.graph
    event = latents_at(built, B)
    on = [i for i in range(len(event)) if int(event.z.rows[i]) == 2][:3]
    changes = {f"b/{int(event.z.ids[i])}@2": f"x{factor}" for i in on}
    nodes = {int((built.columns == event.first + i).nonzero()): factor - 1 for i in on}
    replacement = Replacement(network, list(built.local.groups))
    with torch.no_grad():
        after = intervene(replacement, built.local.batch, changes).output[0, 2]
        before = network.forward(built.local.batch)[0, 2]
    moved = (after - after.mean()) - (before - before.mean())
    said = predict(graph, nodes)
    torch.testing.assert_close(said.direct.float(), moved[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said.total, said.direct)
