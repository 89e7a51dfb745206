import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.objective import TrainingState
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.dictionaries import CLTLayer
from understudy.objectives import LocalFVU, Matryoshka
from understudy.sparsity import BatchTopK

A, B, C = Site("a"), Site("b"), Site("c")
N, SIZES = 12, (2, 3, 7)


def group() -> Group:
    """Two layers of a cross-layer transcoder, a skip path in the first, biases of the group's own."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).double()

    one = {"W_enc": draw(N, 4), "b_enc": draw(N), "W_dec": draw(N, 8), "W_skip": draw(4, 8), "out_center": draw(8)}
    two = {"W_enc": draw(N, 5), "b_enc": draw(N), "W_dec": draw(N, 3)}
    members = [CLTLayer({A: 4}, {B: 5, C: 3}, BatchTopK(4), one), CLTLayer({B: 5}, {C: 3}, BatchTopK(4), two)]
    return Group(members, {C: draw(3), B: draw(5)})


def acts() -> dict:
    generator = torch.Generator().manual_seed(1)
    return {s: torch.randn(9, d, generator=generator).double() for s, d in ((A, 4), (B, 5), (C, 3))}


def naive(g: Group, last: int) -> dict:
    """Everything decoded again with the latents below `last` alone."""
    return g.write([e.z.keep(torch.arange(N) < last) for e in g.encode(acts())], acts())


def test_prefixes_added_up_group_by_group_are_prefixes_decoded_alone():
    """Golden: cumulative decoding equals naive decoding, biases alone first, everything last."""
    g = group()
    found = list(Matryoshka(SIZES).prefixes(g, acts(), g.encode(acts())))
    assert len(found) == 4
    for hats, last in zip(found, (0, 2, 5, N), strict=True):
        for site, hat in naive(g, last).items():
            torch.testing.assert_close(hats[site], hat)
    for site, hat in g.reconstruct(acts()).items():
        torch.testing.assert_close(found[-1][site], hat)


def test_the_loss_is_the_mean_over_levels():
    g, state = group(), TrainingState({B: 2.0, C: 5.0})
    loss = Matryoshka(SIZES)(g, acts(), g.encode(acts()), None, state)
    levels = []
    for last in (0, 2, 5, N):
        hats = naive(g, last)
        levels.append(sum((acts()[s] - hats[s]).square().sum(-1).mean() / state.variance[s] for s in (B, C)) / 2)
    torch.testing.assert_close(loss.total, sum(levels) / 4)
    assert loss.terms["fvu"].item() == pytest.approx(levels[-1].item())
    assert loss.terms["fvu/first 2"].item() == pytest.approx(levels[1].item())
    assert set(loss.terms) == {"fvu", "fvu/first 2", "fvu/first 5"}


def test_of_one_level_it_is_the_local_loss_and_that_of_the_biases():
    g, state = group(), TrainingState({B: 2.0, C: 5.0})
    both = Matryoshka((N,))(g, acts(), g.encode(acts()), None, state).total
    local = LocalFVU()(g, acts(), g.encode(acts()), None, state).total
    nothing = naive(g, 0)
    biases = sum((acts()[s] - nothing[s]).square().sum(-1).mean() / state.variance[s] for s in (B, C)) / 2
    torch.testing.assert_close(both, (local + biases) / 2)


@pytest.mark.parametrize("sizes", [(2, 3), (2, 3, 8)])
def test_prefixes_that_do_not_sum_are_refused(sizes):
    g = group()
    with pytest.raises(BadInput, match=f"add up to {sum(sizes)}, not to 12 latents"):
        Matryoshka(sizes)(g, acts(), g.encode(acts()), None, TrainingState({B: 1.0, C: 1.0}))


@pytest.mark.parametrize("sizes", [(), (12, 0), (13, -1)])
def test_groups_of_nothing_are_refused(sizes):
    with pytest.raises(BadInput, match="groups of at least one latent"):
        Matryoshka(sizes)
