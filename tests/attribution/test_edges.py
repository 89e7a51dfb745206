"""Edges against closed forms, and what must not change them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.attribution.random_dictionaries import card, sae, transcoder
from understudy.attribution import Limits, LocalPass, build
from understudy.attribution.frozen import UnknownOperation
from understudy.attribution.rules import constant
from understudy.attribution.targets import difference, direction, likely, output
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.records.errors import AcausalReplacement, BadInput
from understudy.core.records.metric import Measured
from understudy.core.site import Site
from understudy.dictionaries import Crosscoder
from understudy.networks import AnyModule
from understudy.sparsity import Threshold, TopK

A, B = Site("a"), Site("b")


class TwoLayers(nn.Module):
    """x -> a -> W -> b -> head; `square` bends what lies between the two sites."""

    def __init__(self, square: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Linear(4, 8), nn.Identity(), nn.Identity()
        self.middle, self.head, self.square = nn.Linear(8, 6), nn.Linear(6, 3), square

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.middle(self.a(self.embed(x)))
        return self.head(self.b(h * h if self.square else h))


class OneHead(nn.Module):
    """A residual stream with attention between two sites and no norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.head = nn.Identity(), nn.Identity(), nn.Linear(8, 3)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.head(self.b(x + self.attn(x, x, x, need_weights=False)[0]))


def network(module: nn.Module, d: int) -> AnyModule:
    torch.manual_seed(2)
    return AnyModule(module, Batch({"x": torch.randn(3, 5, d)}), {"*": ("batch", "pos", "d")}, name="toy")


def made(module: nn.Module, d: int, limits: Limits = Limits(), reverse: bool = False):  # noqa: B008
    net = network(module, d)
    groups = [sae(net, A), sae(net, B, seed=1)]
    groups = groups[::-1] if reverse else groups
    local = LocalPass(net, groups, net.example()[:1])
    return build(local, [output(local, 0, place=2), output(local, 1, place=2)], card(net, groups), limits)


def dense(graph) -> torch.Tensor:
    out = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    out[graph.rows.targets, graph.rows.sources.long()] = graph.rows.weights.double()
    return out


def latents_at(built, site: Site):
    return next(e for e in built.sources.events if e.member.reads == (site,))


def test_edge_through_a_linear_layer_is_atom_times_weight_times_row() -> None:
    built = made(TwoLayers(), 4)
    source, target = latents_at(built, A), latents_at(built, B)
    W = built.local.network.module.middle.weight.detach()
    atoms = source.member.atoms(source.z.ids)[A] * source.z.values[:, None]
    rows = target.linear.rows[B][target.linear.which]
    expected = (rows @ W @ atoms.T) * (target.z.rows[:, None] == source.z.rows[None, :])
    found = dense(built.graph)[target.columns, source.columns].float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_edge_through_attention_is_pattern_times_ov() -> None:
    built = made(OneHead(), 8)
    source, target = latents_at(built, A), latents_at(built, B)
    attn: nn.MultiheadAttention = built.local.network.module.attn
    x = built.local.recording.acts[A, 0]
    _, pattern = attn(x, x, x, average_attn_weights=False)
    V, O = attn.in_proj_weight[16:].unflatten(0, (2, 4)), attn.out_proj.weight.unflatten(1, (2, 4))
    atoms = source.member.atoms(source.z.ids)[A] * source.z.values[:, None]
    rows = target.linear.rows[B][target.linear.which]
    at, of = target.z.rows, source.z.rows
    expected = (rows @ atoms.T) * (at[:, None] == of[None, :])
    for h in range(2):
        expected = expected + pattern[0, h][at][:, of] * (rows @ O[:, h] @ V[h] @ atoms.T)
    found = dense(built.graph)[target.columns, source.columns].float()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_nothing_depends_on_the_batch_of_backward_passes_or_the_order_of_groups() -> None:
    one, many, other = (made(OneHead(), 8, limits).graph for limits in (Limits(batch=1), Limits(), Limits(batch=7)))
    torch.testing.assert_close(dense(one), dense(many), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dense(one), dense(other), rtol=1e-4, atol=1e-6)
    turned = made(OneHead(), 8, reverse=True).graph
    targets = slice(-2, None)
    torch.testing.assert_close(
        dense(many)[targets].sort(1).values, dense(turned)[targets].sort(1).values, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("limits", [Limits(nodes=20), Limits(edges=3), Limits(nodes=5, edges=2), Limits(nodes=0 + 1)])
def test_what_is_left_out_is_in_the_remainder(limits: Limits) -> None:
    full, cut = made(OneHead(), 8).graph, made(OneHead(), 8, limits).graph
    assert int(cut.nodes.where("latent").sum()) <= limits.nodes
    assert int(cut.rows.offsets.diff().max()) <= limits.edges
    computed = cut.nodes.computed
    torch.testing.assert_close(cut.rows.total[computed].float(), cut.nodes.value[computed], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.rows.mass[-2:], full.rows.mass[-2:], rtol=1e-4, atol=1e-5)


def test_limited_graph_keeps_the_latents_with_most_influence() -> None:
    """Of the last dictionary, which only the targets read, the rows kept must be those of its strongest edges."""
    full = made(TwoLayers(), 4)
    event = latents_at(full, B)
    weight = torch.stack([dense(full.graph)[t].abs() / dense(full.graph)[t].abs().sum() for t in (-2, -1)]).sum(0)
    wanted = weight[event.columns].topk(3).indices
    kept = made(TwoLayers(), 4, Limits(nodes=6)).graph
    mine = kept.nodes.where("latent") & (kept.nodes.dictionary == 1)
    n = min(3, int(mine.sum()))
    assert n >= 1
    found = set(zip(kept.nodes.latent[mine].tolist(), kept.nodes.place[mine].tolist(), strict=True))
    assert {(int(event.z.ids[i]), int(event.z.rows[i])) for i in wanted[:n]} <= found


def test_live_agreement_is_perfect_where_nothing_is_frozen_and_gone_where_edges_are_shuffled() -> None:
    built = made(TwoLayers(), 4).check(16)
    live = built.graph.card.live
    for figure in (live.slope, live.r2):
        assert isinstance(figure, Measured)
        assert figure.value == pytest.approx(1, abs=1e-3)
    rows = built.graph.rows
    order = torch.randperm(len(rows.weights), generator=torch.Generator().manual_seed(0))
    shuffled = replace(built, graph=replace(built.graph, rows=replace(rows, weights=rows.weights[order])))
    chance = shuffled.check(16).graph.card.live.slope
    assert isinstance(chance, Measured)
    assert abs(chance.value) < 0.4


def test_live_agreement_sees_what_freezing_hides() -> None:
    """A square between the sites: the frozen edge is half the change that removal makes to first order."""
    live = made(TwoLayers(square=True), 4).check(16).graph.card.live
    assert isinstance(live.r2, Measured)
    assert live.r2.value < 0.98


def test_integrated_gradients_agree_on_a_linear_network_and_keep_the_sum_on_another() -> None:
    for module, steps in ((TwoLayers(), 4), (TwoLayers(square=True), 64)):
        net = network(module, 4)
        groups = [sae(net, A), sae(net, B, seed=1)]
        local = LocalPass(net, groups, net.example()[:1])
        targets = [output(local, 0, place=2)]
        exact = build(local, targets, card(net, groups))
        ig = build(local, targets, card(net, groups), steps=steps)
        proof = ig.graph.card.certificate
        assert proof is not None
        assert not proof.exact
        assert proof.clamp_error is None
        assert proof.row_sum_error < 1e-3
        if not module.square:
            torch.testing.assert_close(dense(ig.graph), dense(exact.graph), rtol=1e-4, atol=1e-5)


def test_silent_latents_have_rows_and_add_nothing() -> None:
    built = made(OneHead(), 8, Limits(silent=2))
    nodes, rows = built.graph.nodes, built.graph.rows
    silent = nodes.where("latent") & (nodes.value <= nodes.threshold)
    assert int(silent.sum()) > 0
    torch.testing.assert_close(rows.total[silent].float(), nodes.value[silent], rtol=1e-4, atol=1e-5)
    assert not bool(torch.isin(rows.sources.long(), silent.nonzero().squeeze(-1)).any())
    plain = made(OneHead(), 8).graph
    torch.testing.assert_close(dense(built.graph)[-1].sum(), dense(plain)[-1].sum(), rtol=1e-4, atol=1e-6)
    kept = built.graph.kept_latents()
    assert all(torch.equal(kept[i], plain.kept_latents()[i]) for i in kept)


def test_places_that_do_not_count_have_errors_and_no_latents() -> None:
    net = network(OneHead(), 8)
    groups = [sae(net, A), sae(net, B, seed=1)]
    mask = torch.ones(1, 5, dtype=torch.bool)
    local = LocalPass(net, groups, replace(net.example()[:1], mask=mask).skipping(1))
    graph = build(local, [output(local, 0, place=2)], card(net, groups)).graph
    assert graph.card.certificate is not None
    assert graph.card.certificate.exact
    latents, errors = graph.nodes.where("latent"), graph.nodes.where("error")
    assert int(graph.nodes.place[latents].min()) == 1
    first = errors & (graph.nodes.place == 0)
    whole = torch.stack([(local.leaves[s] - local.constants(s))[0, 0].norm() for s in local.written]).detach()
    torch.testing.assert_close(graph.nodes.value[first], whole, rtol=1e-4, atol=1e-5)


def test_skip_path_carries_edges_past_the_latents() -> None:
    """With a skip path the source reaches the target through the transcoder, and rows still sum."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.a, self.part, self.b, self.head = nn.Identity(), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.part(torch.tanh(self.a(x)))))

    net = network(Parts(), 8)
    found = []
    for skip in (False, True):
        groups = [sae(net, A), transcoder(net, Site("part", "in"), Site("part"), skip=skip), sae(net, B, seed=1)]
        local = LocalPass(net, groups, net.example()[:1])
        built = build(local, [output(local, 0, place=2)], card(net, groups))
        assert built.graph.card.certificate is not None
        assert built.graph.card.certificate.exact
        source, target = latents_at(built, A), latents_at(built, B)
        found.append(float(dense(built.graph)[target.columns, source.columns].abs().sum()))
    assert found[0] == 0
    assert found[1] > 0


def test_targets_are_what_they_say() -> None:
    net = network(TwoLayers(), 4)
    groups = [sae(net, A), sae(net, B, seed=1)]
    local = LocalPass(net, groups, net.example()[:1])
    logits = net.forward(local.batch)[0, 2].detach()
    vector = torch.randn(6)
    given = [output(local, 1, 2), difference(local, 2, 0, 2), direction(local, B, vector, 2)]
    expected = [logits[1] - logits.mean(), logits[2] - logits[0], local.recording.acts[B, 0][0, 2] @ vector]
    for target, value in zip(given, expected, strict=True):
        torch.testing.assert_close(target.value(local.clean).detach(), value, rtol=1e-4, atol=1e-5)
    top = likely(local, 2)
    assert [t.card.output for t in top] == logits.argsort(descending=True)[: len(top)].tolist()
    assert sum(t.card.weight for t in top) == pytest.approx(1)


def test_refusals() -> None:
    net = network(TwoLayers(), 4)
    one = net.example()[:1]
    with pytest.raises(BadInput, match="one input"):
        LocalPass(net, [sae(net, A)], net.example())
    competing = sae(net, A)
    competing.members[0].sparsity = TopK(3)
    with pytest.raises(BadInput, match="compete"):
        LocalPass(net, [competing], one)
    acts = {s: net.record(net.example(), [s])[s].flatten(0, 1) for s in (A, B)}
    spans = Crosscoder.start((A, B), (A, B), 12, Threshold(torch.full((12,), 0.1)), acts, 0).requires_grad_(False)
    with pytest.raises(AcausalReplacement):
        LocalPass(net, [Group([spans])], one)
    local = LocalPass(net, [sae(net, A)], one)
    with pytest.raises(BadInput, match="the network has 3"):
        output(local, 7, 2)


def test_unknown_operations_are_refused_by_name_and_can_be_given_a_rule() -> None:
    class Odd(TwoLayers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(torch.special.bessel_j0(self.middle(self.a(self.embed(x))))))

    net = network(Odd(), 4)
    with pytest.raises(UnknownOperation, match="special_bessel_j0"):
        LocalPass(net, [sae(net, A), sae(net, B)], net.example()[:1])
    rules = {"special_bessel_j0": constant("gate")}
    LocalPass(net, [sae(net, A), sae(net, B)], net.example()[:1], rules)
