"""Random dictionaries with thresholds at real sites: no network need be understood for its bookkeeping to be exact."""

import torch

from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.graph import DictionaryCard, GraphCard
from understudy.core.site import Site
from understudy.dictionaries import SAE, Transcoder
from understudy.sparsity import Threshold


def sae(network: Network, site: Site, n_latents: int = 24, seed: int = 0, theta: float = 0.3) -> Group:
    """An SAE at one site, on for about a third of its latents."""
    rows = _rows(network, site)
    rule = Threshold(torch.full((n_latents,), theta))
    return _perturbed(SAE.start((site,), (site,), n_latents, rule, {site: rows}, seed), seed)


def transcoder(
    network: Network, read: Site, write: Site, n_latents: int = 24, seed: int = 0, skip: bool = False
) -> Group:
    """A transcoder whose decoder is random, with a skip path where asked for."""
    acts = {read: _rows(network, read), write: _rows(network, write)}
    rule = Threshold(torch.full((n_latents,), 0.3))
    made = Transcoder.start((read,), (write,), n_latents, rule, acts, seed)
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        made.W_dec.copy_(torch.randn(made.W_dec.shape, generator=g))
        if skip:
            shape = (sum(made.d_reads), sum(made.d_writes))
            made.W_skip = torch.nn.Parameter(torch.randn(shape, generator=g) / shape[0] ** 0.5)
    return _perturbed(made, seed)


def _perturbed(made, seed: int) -> Group:
    g = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        made.b_enc.copy_(0.3 * torch.randn(made.b_enc.shape, generator=g))
        made.b_dec.copy_(0.1 * torch.randn(made.b_dec.shape, generator=g))
    return Group([made.requires_grad_(False)])


def _rows(network: Network, site: Site) -> torch.Tensor:
    value = network.record(network.example(), [site])[site]
    return value.reshape(-1, value.shape[-1]).float()


def one(network: Network) -> Batch:
    """The first sequence of the example batch."""
    return network.example()[:1]


def card(network: Network, groups: list[Group]) -> GraphCard:
    """A card for tests: fingerprints are none of their business."""
    members = [m for g in groups for m in g.members]
    return GraphCard(
        network=network.name, network_fingerprint="", run=None, sites=[], shape=(1,), targets=[],
        dictionaries=[
            DictionaryCard(kind=m.kind, reads=[], writes=[str(m.writes[0])], n_latents=m.n_latents, fingerprint="")
            for m in members
        ],
    )  # fmt: skip
