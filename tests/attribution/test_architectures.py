"""The certificate on real architectures: edges from backward passes against forward passes of the frozen network, and
the frozen network against the network itself."""

import pytest
import torch

from tests.attribution.random_dictionaries import card, one, sae, transcoder
from tests.zoo.cases import CASES, needs
from understudy.attribution import LocalPass, build
from understudy.attribution.frozen import tensors
from understudy.attribution.targets import output
from understudy.core.batch import Batch
from understudy.core.names import find_sites
from understudy.networks import AnyModule

WANTED = {
    "gpt2": "pre-norm, learned positions", "llama": "rotary, gated MLP", "qwen3": "grouped queries, query norms",
    "gemma2": "soft-caps, post-norms", "mixtral": "mixture of experts", "gpt_oss": "mixture of experts, sinks",
    "mamba2": "state space", "jamba": "attention and state space", "rwkv": "linear attention",
    "nn.GRUCell": "called T times", "nn.TransformerEncoder": "post-norm",
    "impala policy": "convolutions", "unet": "skip connections", "vit": "images",
}  # fmt: skip
CHOSEN = {c.name: c for c in CASES if c.name in WANTED}


def local_pass(name: str) -> LocalPass:
    case = CHOSEN[name]
    needs(case.since)
    network = case.network()
    sites = list(dict.fromkeys(find_sites(network, case.site)))
    if any(row.name == "resid.0" for row in network.named_sites()):
        sites = list(dict.fromkeys([*find_sites(network, "resid.0"), *sites]))
    groups = [sae(network, site, seed=i) for i, site in enumerate(sites)]
    for i, part in enumerate(p for p in network.parts() if p.name in ("mlp.0", "mlp.2")):
        groups.append(transcoder(network, part.read, part.write, seed=9 + i, skip=i == 0))
    return LocalPass(network, groups, one(network))


@pytest.mark.parametrize("name", WANTED)
def test_edges_are_those_of_the_frozen_network(name: str) -> None:
    local = local_pass(name)
    made = build(local, [output(local, 1)], card(local.network, list(local.groups)))
    proof = made.graph.card.certificate
    assert proof is not None
    assert proof.exact, proof
    computed = made.graph.nodes.computed
    torch.testing.assert_close(
        made.graph.rows.total[computed].float(), made.graph.nodes.value[computed], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", WANTED)
def test_frozen_network_is_the_network_at_its_input(name: str) -> None:
    local = local_pass(name)
    with torch.no_grad():
        wanted = list(tensors(local.network.forward(local.batch)))
    for mine, theirs in zip(tensors(local.clean.output), wanted, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WANTED)
def test_with_every_rule_thawed_the_twins_are_the_operations(name: str) -> None:
    """Away from the clean input too: explicit attention, norms and cells compute what the fused ones compute."""
    local = local_pass(name)
    g = torch.Generator().manual_seed(3)
    moved = {
        s: (v.detach() + 0.3 * v.detach().std() * torch.randn(v.shape, generator=g)) for s, v in local.leaves.items()
    }
    leaves = {s: v.requires_grad_() for s, v in moved.items()}
    rules = tuple(set(local.tape.rules.values()))
    thawed, live = local.run(leaves, thawed=rules), local.run(leaves, frozen=False)
    for mine, theirs in zip(tensors(thawed.output), tensors(live.output), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_fused_recurrent_layers(kind: str) -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(5, 6)
            self.rnn = getattr(torch.nn, kind)(6, 8, num_layers=2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(self.a(x))[0])

    network = AnyModule(Net(), Batch({"x": torch.randn(1, 7, 5)}), {"*": ("batch", "pos", "d")}, name=kind)
    groups = [sae(network, site) for site in find_sites(network, "a:out")]
    groups += [sae(network, site, seed=1) for site in find_sites(network, "rnn:out")]
    local = LocalPass(network, groups, network.example())
    made = build(local, [output(local, 2, place=3)], card(network, groups))
    assert made.graph.card.certificate is not None
    assert made.graph.card.certificate.exact, made.graph.card.certificate
