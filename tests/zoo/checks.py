"""What every network of the zoo must do, or refuse with the reason its case expects."""

from collections.abc import Callable

import torch
from torch import Tensor

from understudy.core.dictionary import Group
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_sites
from understudy.core.network import Network
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.core.tap import Tap
from understudy.networks.any_module import first_tensor
from understudy.sparsity import Identity

from .cases import Case


def read(network: Network, site: Site) -> None:
    value = network.record(network.example(), [site])[site]
    assert value.shape[0] == batch_size(network)
    assert value.shape[-1] == network.width(site)
    assert value.isfinite().all()
    assert value.std() > 0


def edit(network: Network, site: Site) -> None:
    clean = output(network)
    with network.edited({site: lambda value, call: value.clone()}):
        assert torch.equal(output(network), clean), "a no-op edit must be bit-identical"
    with network.edited({site: lambda value, call: value + 0.5 * value.std() * noise(value)}):
        assert not torch.allclose(output(network), clean)
    assert torch.equal(output(network), clean), "an edit must leave no trace"


def stop(network: Network, site: Site) -> None:
    batch = network.example()
    stopped, full = (network.record(batch, [site], stop=s)[site] for s in (True, False))
    assert torch.equal(stopped, full)
    if network.layout(site).calls == "once":
        with Tap(network.module, [site], stop_after={site: 1}):
            network.forward(batch)
            raise AssertionError("the forward pass should have been abandoned")


def gradient(network: Network, site: Site) -> None:
    deltas: list[Tensor] = []

    def add(value: Tensor, call: int) -> Tensor:
        deltas.append(torch.zeros_like(value).requires_grad_())
        return value + deltas[-1]

    with network.edited({site: add}):
        out = first_tensor(network.forward(network.example()))
        (out * noise(out)).sum().backward()
    gradients = [d.grad for d in deltas]
    assert gradients, "the edit was never applied"
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def replace(network: Network, site: Site) -> None:
    batch, d, clean = network.example(), network.width(site), output(network)
    for scale in (1.0, 0.0):
        arrays = {
            "W_enc": torch.eye(d),
            "b_enc": torch.zeros(d),
            "W_dec": scale * torch.eye(d),
            "b_dec": torch.zeros(d),
        }
        dictionary = LinearDictionary({site: d}, {site: d}, Identity(), arrays)
        with torch.no_grad():
            out = first_tensor(Replacement(network, [Group([dictionary])]).run(batch).output)
        if scale:
            torch.testing.assert_close(out, clean, atol=1e-5, rtol=1e-5)
        else:
            assert not torch.allclose(out, clean)


CHECKS: dict[str, Callable[[Network, Site], None]] = {f.__name__: f for f in (read, edit, stop, gradient, replace)}


def outcomes(case: Case) -> dict[str, str]:
    """For each check "yes", or `ErrorType: reason` of what was refused."""
    network = case.network()
    (site,) = find_sites(network, case.site)
    found = {}
    for name, check in CHECKS.items():
        try:
            check(network, site)
            found[name] = "yes"
        except AssertionError:
            raise
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def row(case: Case, found: dict[str, str]) -> str:
    """A line of docs/zoo.md."""
    network = case.network()
    (site,) = find_sites(network, case.site)
    layout = network.layout(site)
    cells = ["yes" if v == "yes" else f"refuses ({v.split(':')[0]})" for v in found.values()]
    calls = (
        f"#{site.call}, depth" if site.call is not None else {"time": f"{layout.n_calls}, time"}.get(layout.calls, "1")
    )
    return f"| {case.name} | `{site}` | {', '.join(layout.axes)} | {calls} | {' | '.join(cells)} |"


def output(network: Network) -> Tensor:
    with torch.no_grad():
        return first_tensor(network.forward(network.example())).clone()


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(2)).to(like)


def batch_size(network: Network) -> int:
    batch = network.example()
    tokens = batch.inputs.get("tokens")
    return batch.n_sequences if tokens is None else tokens.shape[1]
