"""The hardest customers of the contracts: small networks, and for each a group that reads and writes them oddly.

Dictionaries that no shelf holds yet are written here as a user would write them, against the contract alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.baselines import TopNeurons
from understudy.core.batch import Batch
from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, Group, Linearised
from understudy.core.latents import Encoded, Latents, LinearPre
from understudy.core.network import Network
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Components, Crosscoder, Transcoder, clt_group
from understudy.sparsity import BatchTopK, CausalImportance, TopK

D, N, VOCAB = 8, 24, 11


class Net(Network):
    """A user's adapter: module, example, axes by the site's module name, and what repeated calls mean."""

    def __init__(self, module: nn.Module, batch: Batch, axes=("batch", "pos", "d"), calls="once") -> None:
        super().__init__(module, type(module).__name__)
        self.batch, self.site_axes, self.site_calls = batch, axes, calls

    def example(self) -> Batch:
        return self.batch

    def axes(self, site, value):
        return self.site_axes, self.site_calls

    def divergence(self, a, b, batch):
        return (a - b).square().mean(-1)


class GatedMLP(nn.Module):
    def __init__(self, d: int = D, h: int = 16) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(d, h), nn.Linear(d, h), nn.Linear(h, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """One causal head with explicit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))

    def pattern(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2) / D**0.5
        return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.pattern(x) @ self.v(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_attn, self.attn = nn.LayerNorm(D), Attention()
        self.norm_mlp, self.mlp = nn.LayerNorm(D), GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_attn(x))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    def __init__(self, repeat: int = 0) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB)
        self.blocks = nn.ModuleList([Block()] if repeat else [Block() for _ in range(3)])
        self.repeat = repeat

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for i in range(self.repeat or 3):
            x = self.blocks[0 if self.repeat else i](x)
        return self.head(x)


class Recurrent(nn.Module):
    """A GRU cell called once for each time step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(VOCAB, D), nn.GRUCell(D, D), nn.Linear(D, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        h, out = torch.zeros(len(tokens), D), []
        for x in self.embed(tokens).unbind(1):
            h = self.cell(x, h)
            out.append(self.head(h))
        return torch.stack(out, 1)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, D, 3), nn.Conv2d(D, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image).relu()).mean((-1, -2))


class Parameters(Dictionary):
    """Rank-1 parameter components of a Linear with stochastic masks (Bushnaq et al. 2025): value = inner x mask."""

    kind = "parameters"

    def __init__(self, module: str, linear: nn.Linear) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (Site(module, "in"),), (Site(module, "out"),), N
        self.V, self.U = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(N, D) / N)
        self.weight = linear.weight.detach().clone()

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        pre = LinearPre(acts[self.reads[0]], self.V, torch.zeros(N))
        z = pre.above(-torch.inf)
        mask = torch.rand(len(z.values), generator=torch.Generator().manual_seed(ctx.call))
        return Encoded(Latents(z.values * mask, z.pattern, z.shape, gate=mask), pre)

    def decode(self, z: Latents):
        return {self.writes[0]: z.decode(self.U)}

    def atoms(self, ids):
        return {self.writes[0]: self.U[ids]}

    def rest(self, acts: Acts):
        """The delta component: what the components' sum misses of the weight."""
        return {self.writes[0]: acts[self.reads[0]] @ (self.weight.T - self.V.T @ self.U)}

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        assert z.gate is not None
        rows = self.V[z.ids] * z.gate[:, None]
        return Linearised({self.reads[0]: rows}, torch.zeros(len(z.ids)), torch.arange(len(z.ids)))


class GatedNeurons(Dictionary):
    """The neurons of a gated MLP: rows differ at every place, as the gate is frozen at its value there."""

    kind = "gated_neurons"

    def __init__(self, module: str, mlp: GatedMLP) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (Site(module, "in"),), (Site(module, "out"),), 16
        self.mlp = mlp

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        x = acts[self.reads[0]]
        gate = nn.functional.silu(self.mlp.gate(x))
        pre = LinearPre(x, self.mlp.up.weight, self.mlp.up.bias)
        z = pre.above(-torch.inf)
        g = gate.reshape(-1, 16)[z.rows, z.ids]
        return Encoded(Latents(z.values * g, z.pattern, z.shape, gate=g), pre)

    def decode(self, z: Latents):
        return {self.writes[0]: z.decode(self.mlp.down.weight.T)}

    def atoms(self, ids):
        return {self.writes[0]: self.mlp.down.weight.T[ids]}

    def rest(self, acts: Acts):
        return {self.writes[0]: self.mlp.down.bias.expand(acts[self.reads[0]].shape)}

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        assert z.gate is not None
        rows = self.mlp.up.weight[z.ids] * z.gate[:, None]
        return Linearised({self.reads[0]: rows}, self.mlp.up.bias[z.ids] * z.gate, torch.arange(len(z.ids)))


class Head(Dictionary):
    """An attention head, scope "sequence": latents are its value channels after the pattern mixed places."""

    kind, scope = "head", "sequence"

    def __init__(self, module: str, attention: Attention) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (Site(module, "in"),), (Site(module, "out"),), D
        self.attention = attention

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        x = acts[self.reads[0]]
        mixed = self.attention.pattern(x) @ self.attention.v(x)
        return Encoded(Latents.from_dense(mixed), LinearPre(mixed, torch.eye(D), torch.zeros(D)))

    def decode(self, z: Latents):
        return {self.writes[0]: z.decode(self.attention.o.weight.T)}

    def atoms(self, ids):
        return {self.writes[0]: self.attention.o.weight.T[ids]}

    def rest(self, acts: Acts):
        return {self.writes[0]: torch.zeros_like(acts[self.reads[0]])}


class Rule(Dictionary):
    """A Python function of the tokens: "after token 3, write this"; reads the network's input, no activation."""

    kind, scope = "rule", "sequence"

    def __init__(self, write: Site) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = (Site("inputs", "tokens"),), (write,), 1
        self.atom = torch.randn(1, D)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        tokens = acts[self.reads[0]]
        on = (tokens == 3).float()[..., None]
        return Encoded(Latents.from_dense(on), LinearPre(on, torch.ones(1, 1), torch.zeros(1)))

    def decode(self, z: Latents):
        return {self.writes[0]: z.decode(self.atom)}

    def atoms(self, ids):
        return {self.writes[0]: self.atom[ids]}

    def rest(self, acts: Acts):
        return {self.writes[0]: torch.zeros(*acts[self.reads[0]].shape, D)}


@dataclass(frozen=True)
class Customer:
    """A network and groups in it. `acausal`: cannot run, only intervene."""

    network: Network
    groups: list[Group]
    acausal: bool = False


def tokens() -> Batch:
    ids = torch.randint(VOCAB, (4, 6), generator=torch.Generator().manual_seed(5))
    return Batch({"tokens": ids}, mask=torch.ones(4, 6, dtype=torch.bool))


def _sample(network: Network, sites) -> Acts:
    acts = network.record(network.example(), sites)
    rows = {s: v.reshape(-1, v.shape[-1]) for s, v in acts.items()}
    generator = torch.Generator().manual_seed(1)
    return {
        s: v.repeat(8, 1) + 0.01 * torch.randn(len(v) * 8, v.shape[1], generator=generator) for s, v in rows.items()
    }


def _started(kind, network, reads, writes, rule=None):
    d = kind.start(reads, writes, N, rule or TopK(4), _sample(network, (*reads, *writes)), 0)
    with torch.no_grad():  # what a layer of a CLT writes to later sites starts at 0
        drawn = torch.randn(d.W_dec.shape, generator=torch.Generator().manual_seed(2))
        d.W_dec.copy_(torch.where(d.W_dec == 0, drawn, d.W_dec))
    return d


def _mlp(i: int, port: str) -> Site:
    return Site(f"blocks.{i}.mlp", port)


def _transformer(make: Callable[[Network], list[Group]], acausal: bool = False) -> Customer:
    network = Net(Transformer(), tokens())
    return Customer(network, make(network), acausal)


def _clt(network: Network) -> list[Group]:
    layers = [_started(CLTLayer, network, [_mlp(i, "in")], [_mlp(j, "out") for j in range(i, 3)]) for i in range(3)]
    return [clt_group(layers, _sample(network, [_mlp(i, "out") for i in range(3)]))]


def _neurons(network: Network) -> list[Group]:
    down = network.module.get_submodule("blocks.1.mlp.down")
    read = Site("blocks.1.mlp.down", "in")
    return [Group([TopNeurons(read, _mlp(1, "out"), down.weight.T, down.bias, 5)])]


def _components(network: Network) -> list[Group]:
    """Real ones, of two Linears of one block: one group, untrained."""
    groups = []
    for name in ("blocks.1.attn.v", "blocks.1.mlp.down"):
        sites = [Site(name, "in")], [Site(name)]
        sample = _sample(network, [s for part in sites for s in part])
        groups.append(Components.begin(network, *sites, N, CausalImportance.start(N), sample, 0))
    return [Components.group([m.thresholded({}).folded() for m in groups], {})]


def _depth() -> Customer:
    network = Net(Transformer(repeat=3), tokens(), calls="depth")
    sites = [Site("blocks.0.mlp", port, call=1) for port in ("in", "out")]
    return Customer(network, [Group([_started(Transcoder, network, sites[:1], sites[1:])])])


def _gru() -> Customer:
    network = Net(Recurrent(), tokens(), axes=("batch", "d"), calls="time")
    return Customer(network, [Group([_started(SAE, network, [Site("cell")], [Site("cell")])])])


def _cnn() -> Customer:
    images = Batch({"image": torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(3))})
    network = Net(Convolution(), images, axes=("batch", "d", "y", "x"))
    return Customer(network, [Group([_started(SAE, network, [Site("first")], [Site("first")])])])


CUSTOMERS: dict[str, Callable[[], Customer]] = {
    "sae": lambda: _transformer(lambda n: [Group([_started(SAE, n, [Site("blocks.1")], [Site("blocks.1")])])]),
    "transcoder": lambda: _transformer(
        lambda n: [Group([_started(Transcoder, n, [_mlp(i, "in")], [_mlp(i, "out")])]) for i in range(3)]
    ),
    "clt": lambda: _transformer(_clt),
    "crosscoder": lambda: _transformer(
        lambda n: [Group([_started(Crosscoder, n, [Site(f"blocks.{i}") for i in (0, 2)], [])])], acausal=True
    ),
    "parameters": lambda: _transformer(
        lambda n: [Group([Parameters("blocks.1.attn.v", n.module.get_submodule("blocks.1.attn.v"))])]  # pyright: ignore
    ),
    "components": lambda: _transformer(_components),
    "gated_neurons": lambda: _transformer(
        lambda n: [Group([GatedNeurons("blocks.1.mlp", n.module.get_submodule("blocks.1.mlp"))])]  # pyright: ignore
    ),
    "top_neurons": lambda: _transformer(_neurons),
    "head": lambda: _transformer(
        lambda n: [Group([Head("blocks.1.attn", n.module.get_submodule("blocks.1.attn"))])]  # pyright: ignore
    ),
    "rule": lambda: _transformer(lambda n: [Group([Rule(_mlp(1, "out"))])]),
    "batch_topk": lambda: _transformer(
        lambda n: [Group([_started(Transcoder, n, [_mlp(1, "in")], [_mlp(1, "out")], BatchTopK(4))])]
    ),
    "depth": _depth,
    "gru": _gru,
    "cnn": _cnn,
}
EXACT = {"gated_neurons", "head"}
"""Their replacement equals the network even without errors."""


def customer(name: str) -> Customer:
    torch.manual_seed(0)
    return CUSTOMERS[name]()
