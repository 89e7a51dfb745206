"""Fingerprints tell other weights apart, and nothing else."""

import copy

import torch

from tests.contracts.customers import customer
from understudy.core.fingerprint import dictionary_fingerprint, network_fingerprint
from understudy.core.site import Site
from understudy.dictionaries import Transcoder
from understudy.sparsity import Threshold


def made(site: str = "a") -> Transcoder:
    arrays = {"W_enc": torch.eye(3), "b_enc": torch.zeros(3), "W_dec": torch.eye(3), "b_dec": torch.zeros(3)}
    return Transcoder({Site(site, "in"): 3}, {Site(site): 3}, Threshold(torch.ones(3)), arrays)


def test_the_same_dictionary_has_the_same_fingerprint_in_every_process():
    assert dictionary_fingerprint(made()) == dictionary_fingerprint(copy.deepcopy(made())) == "1c948fa7a875dd72"


def test_any_value_any_site_and_any_dtype_make_another():
    def changed(name: str) -> Transcoder:
        other = made()
        with torch.no_grad():
            other.state_dict()[name].view(-1)[-1].add_(1e-6)
        return other

    names = list(made().state_dict())
    assert "sparsity.theta" in names
    prints = {dictionary_fingerprint(d) for d in (made(), made("b"), made().double(), *map(changed, names))}
    assert len(prints) == 3 + len(names)


def test_a_network_with_one_changed_matrix_is_another():
    network = customer("transcoder").network
    before = network_fingerprint(network)
    assert network_fingerprint(customer("transcoder").network) == before
    weight: torch.Tensor = network.module.get_submodule("head").weight  # pyright: ignore
    with torch.no_grad():
        weight.mul_(1.01)
    assert network_fingerprint(network) != before
