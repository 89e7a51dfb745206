"""What makes rows cheap must not change them: products laid side by side, prefixes, vectors packed by place, chunks."""

import pytest
import torch
from torch import nn

from tests.attribution.random_dictionaries import card, sae
from understudy.attribution import Limits, LocalPass, build
from understudy.attribution.build import make_engine
from understudy.attribution.chunks import sparse
from understudy.attribution.held_product import held_product
from understudy.attribution.prefixes import Prefixes, places, prefix
from understudy.attribution.sources import Sources
from understudy.attribution.targets import output
from understudy.attribution.written import Written
from understudy.core.batch import Batch
from understudy.core.site import Site
from understudy.networks import AnyModule

PLACES = 48


class Reader(nn.Module):
    """Token ids through one attention layer, causal or not, between two named places."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(11, 8), nn.Identity(), nn.Identity()
        self.attn, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.causal = causal

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.a(self.embed(ids))
        n = ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        return self.head(self.b(x + self.attn(x, x, x, attn_mask=mask, need_weights=False)[0]))


def local_pass(causal: bool) -> LocalPass:
    g = torch.Generator().manual_seed(1)
    batch = Batch({"ids": torch.randint(0, 11, (2, PLACES), generator=g)})
    net = AnyModule(Reader(causal), batch, {"*": ("batch", "pos", "d")}, name="reader")
    return LocalPass(net, [sae(net, Site("a")), sae(net, Site("b"), seed=1)], net.example()[:1])


def test_prefixes_of_a_causal_network_give_the_rows_of_the_whole_input() -> None:
    local = local_pass(causal=True)
    assert places(local) == PLACES
    sources = Sources(local)
    short, whole = (make_engine(local, sources, Limits()) for _ in range(2))
    whole._prefixes = None
    event = sources.events[1]
    early = (event.z.rows < 16).nonzero().squeeze(-1)
    assert len(early)
    torch.testing.assert_close(short.event(event, early), whole.event(event, early), rtol=1e-5, atol=1e-6)
    assert short._prefixes is not None
    (made,) = short._prefixes.made.values()
    assert made is not None
    assert made[0].reads[1, local.slot_of(Site("b"), 0)].shape[1] == 16


def test_network_that_looks_ahead_has_no_prefixes() -> None:
    local = local_pass(causal=False)
    assert prefix(local, 16) is None
    assert Prefixes(local).up_to(3) == (local.clean, local.leaves)
    made = build(local, [output(local, 0)], card(local.network, list(local.groups)))
    assert made.graph.card.certificate is not None
    assert made.graph.card.certificate.exact


def test_network_of_one_length_has_no_prefixes() -> None:
    class OneLength(Reader):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + torch.zeros(1, PLACES, 3)

    batch = Batch({"ids": torch.arange(PLACES)[None] % 11})
    net = AnyModule(OneLength(True), batch, {"*": ("batch", "pos", "d")}, name="one length")
    local = LocalPass(net, [sae(net, Site("a")), sae(net, Site("b"), seed=1)], net.example())
    assert prefix(local, 16) is None
    made = build(local, [output(local, 0)], card(net, list(local.groups)))
    assert made.graph.card.certificate is not None
    assert made.graph.card.certificate.exact


def test_floating_inputs_have_no_prefixes() -> None:
    net = AnyModule(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), Batch({"input": torch.randn(1, 20, 4)}),
                    {"*": ("batch", "pos", "d")}, name="linear")  # fmt: skip
    site = Site("0")
    assert places(LocalPass(net, [sae(net, site)], net.example())) == 0


@pytest.mark.parametrize("shape", [(1, 3, 7, 7), (2, 5, 4)])
def test_held_product_has_the_gradients_of_a_product(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    held, live = torch.randn(shape), torch.randn(*shape[:-2], shape[-1], 6, requires_grad=True)
    given = torch.randn(9, *(held @ live).shape)
    found, wanted = (
        torch.autograd.grad(f(held, live), live, given, is_grads_batched=True)[0] for f in (held_product, torch.matmul)
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(held_product(held, live), held @ live)
    one = torch.autograd.grad(held_product(held, live), live, given[0])[0]
    torch.testing.assert_close(one, wanted[0])


@pytest.mark.parametrize("n", [20, 11, 1])
def test_packed_vectors_give_the_same_products_where_one_place_is_crowded(n: int) -> None:
    torch.manual_seed(0)
    p, d, b = 20, 5, 3
    places_ = torch.cat([torch.randint(0, p, (30,)), torch.full((40,), 7)])
    columns, vectors = torch.randperm(len(places_)) + p + 1, torch.randn(len(places_), d)
    error, bias, grad = torch.randn(p, d), torch.randn(p, d), torch.randn(b, n, d)
    written = Written.of(error, bias, places_, columns, vectors)
    assert len(written.crowded)
    assert written.parts.shape[1] < 40
    out, wanted = torch.zeros(2, b, 1 + p + len(places_))
    written.edges(grad, out, slice(0, p), p)
    wanted[:, :n] = torch.einsum("bpd,pd->bp", grad, error[:n])
    wanted[:, p] = torch.einsum("bpd,pd->b", grad, bias[:n])
    for place, column, vector in zip(places_.tolist(), columns.tolist(), vectors, strict=True):
        if place < n:
            wanted[:, column] += grad[:, place] @ vector
    torch.testing.assert_close(out, wanted)


def test_sparse_rows_keep_the_largest_and_lose_nothing() -> None:
    torch.manual_seed(0)
    dense = torch.randn(6, 40) * (torch.rand(6, 40) > 0.3)
    dense[2] = 1.0  # every edge of one size
    chunk = sparse(torch.arange(6), dense, 7, torch.tensor([0, 3]), torch.zeros(40), torch.zeros(2))
    assert chunk.counts.tolist() == [7] * 6
    for row, (sources, weights) in enumerate(zip(chunk.sources.split(7), chunk.weights.split(7), strict=True)):
        assert torch.equal(weights, dense[row, sources.long()])
        assert float(weights.abs().min()) >= float(dense[row].abs().topk(8).values[-1])
    kept = torch.stack([w.double().sum() for w in chunk.weights.split(7)])
    torch.testing.assert_close(kept + chunk.remainder, dense.double().sum(1))
    kept = torch.stack([w.double().abs().sum() for w in chunk.weights.split(7)])
    torch.testing.assert_close(kept + chunk.remainder_abs, dense.double().abs().sum(1))
    whole = sparse(torch.arange(6), dense, 40, torch.tensor([0]), torch.zeros(40), torch.zeros(2))
    assert float(whole.remainder_abs.abs().max()) == 0
    assert len(whole.weights) == int((dense != 0).sum())
