"""Claims on dictionaries made by hand, in planted activations of a real network: the answer is known before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core.bootstrap import Bootstrap
from understudy.core.dictionary import Group
from understudy.core.names import find_sites
from understudy.core.records.metric import NotMeasured
from understudy.dictionaries import SAE
from understudy.metrics.shrinkage import refit
from understudy.organisms import make_organism
from understudy.sparsity import Threshold
from understudy.workflows._grid.together import FIT_CHUNK, Bench
from understudy.workflows._training.build import plan
from understudy.workflows._transferring.claim import Seen
from understudy.workflows._transferring.claims import JumpReLURemovesShrinkage, NestedRemovesAbsorption
from understudy.workflows._transferring.claims.shrinkage import FIT_ROWS
from understudy.workflows._transferring.planting import CHILD, CHILDREN, LOOSE, NESTED, PARENT, Planting

N = 48


@pytest.fixture(scope="module")
def world():
    return make_organism("synthetic", 0)


@pytest.fixture(scope="module")
def bench(world) -> Bench:
    return Bench(world.network, plan(world.network, "sae", "act"), world.data["train"])


@pytest.fixture(scope="module")
def planted(bench):
    """Features so long that an encoder made by hand hears them; trained ones hear shorter ones."""
    made = NestedRemovesAbsorption().bench(bench, 0)
    return replace(made, planting=replace(made.planting, length=8 * made.planting.length))


def made_by_hand(planted, absorbs: bool) -> Group:
    """A latent for each feature; a child's that absorbs writes the parent too, whose own is then silent."""
    (site,) = find_sites(planted.network, "act")
    rows = planted.harvest(0).chunk(0)[site]
    writes, length = planted.planting.directions, planted.planting.length
    reads = torch.linalg.pinv(writes.flatten(0, 1)).T.reshape(writes.shape)
    often = torch.tensor([PARENT, *[PARENT * CHILD / CHILDREN] * CHILDREN])
    mean = rows.mean(0) - length * torch.einsum("i,fid->d", often, writes)
    if absorbs:
        reads, writes = reads.clone(), writes.clone()
        reads[:, 0] -= 2 * reads[:, 1:].sum(1)
        writes[:, 1:] += writes[:, :1]
    W_enc, W_dec = reads.flatten(0, 1), writes.flatten(0, 1)
    arrays = {"W_enc": W_enc, "b_enc": torch.zeros(len(W_enc)), "W_dec": W_dec, "b_dec": mean}
    sae = SAE({site: len(mean)}, {site: len(mean)}, Threshold(torch.full((len(W_enc),), length / 2)), arrays)
    return Group([sae])


@torch.no_grad()
def tally(claim, bench, group, sequences):
    """What a trial counts, over N sequences."""
    (site,) = group.writes
    counter = claim.counter(bench, group, N)
    for number, at in enumerate(torch.arange(N).split(8)):
        acts = bench.network.record(sequences.batch(at), [site])[site]
        which = at[:, None].expand(acts.shape[:-1]).flatten()
        x = claim.given(bench, acts.flatten(0, 1), number)
        (encoded,) = group.encode({site: x})
        hat = group.write([encoded.z], {site: x})[site]
        counter.update(Seen(x, hat, encoded.z, which, number))
    return counter.sums()


@pytest.mark.parametrize("absorbs", [False, True])
def test_a_dictionary_that_absorbs_is_told_from_one_that_does_not(world, planted, absorbs):
    claim, b = NestedRemovesAbsorption(), Bootstrap(N)
    counted = tally(claim, planted, made_by_hand(planted, absorbs), world.data["held_out"])
    (defect,), (control,) = claim.defects([counted], b), claim.controls([counted], b)
    figure = b.summarise(defect, "fraction", b.n_units)
    if absorbs:
        assert figure.low > 0.5
    else:
        assert abs(figure.value) < 0.05
        assert abs(control[0]) < 0.05


def test_parents_that_some_dictionary_has_not_found_are_left_out_of_all(world, planted):
    claim, b = NestedRemovesAbsorption(), Bootstrap(N)
    good = tally(claim, planted, made_by_hand(planted, False), world.data["held_out"])
    lost = dict(good, f1=np.where(np.arange(NESTED + LOOSE) < NESTED - 1, 0.1, 0.9))
    assert isinstance(claim.defects([good, lost], b), NotMeasured)
    assert not isinstance(claim.controls([good, lost], b), NotMeasured)
    one = dict(good, f1=np.where(np.arange(NESTED + LOOSE) < 1, 0.1, 0.9))
    assert not isinstance(claim.defects([good, one], b), NotMeasured)


def test_what_is_planted_is_what_is_said(bench, planted):
    (site,) = find_sites(planted.network, "act")
    rows, plain = (x.harvest(0).chunk(FIT_CHUNK)[site].clone() for x in (planted, bench))
    drawn = planted.planting.draw(len(rows), FIT_CHUNK)
    torch.testing.assert_close(rows - plain, drawn.added, atol=1e-5, rtol=0)
    nested, loose = slice(0, NESTED), slice(NESTED, None)
    assert not (drawn.children & ~drawn.parents)[:, nested].any()
    often = drawn.children.double().mean(0)
    assert float(often[nested].mean()) == pytest.approx(float(often[loose].mean()), rel=0.15)
    both = float((drawn.children & drawn.parents)[:, loose].double().mean())
    assert both == pytest.approx(PARENT * PARENT * CHILD, rel=0.3)  # of independent ones
    unit = planted.planting.directions[0, 0]
    alone = drawn.parents[:, 0] & ~drawn.children[:, 0]
    along = float((drawn.added[alone] @ unit).mean() - (drawn.added[~drawn.parents[:, 0]] @ unit).mean())
    assert along == pytest.approx(planted.planting.length, rel=0.05)


def test_seeds_and_numbers_draw_others_and_the_same_draws_the_same(planted):
    p = planted.planting
    assert torch.equal(p.draw(100, 3).added, p.draw(100, 3).added)
    assert not torch.equal(p.draw(100, 3).parents, p.draw(100, 4).parents)
    other = type(p)(p.width, p.length, p.seed + 1)
    assert not torch.equal(p.directions, other.directions)


def test_a_family_is_at_right_angles_and_no_direction_is_preferred():
    for width in (1 + CHILDREN, 48):
        directions = torch.cat([Planting(width, 1.0, seed).directions for seed in range(20)])
        torch.testing.assert_close(directions @ directions.mT, torch.eye(1 + CHILDREN).expand(len(directions), -1, -1))
        assert 0.3 < float((directions[..., 0] > 0).double().mean()) < 0.7


def test_a_row_says_how_many_parents_each_arm_has_found():
    f1 = np.full(NESTED + LOOSE, 0.9)
    lost = np.where(np.arange(NESTED + LOOSE) == 2, 0.1, f1)
    seeds = [{"a": [{"f1": f1}], "b": [{"f1": f1}, {"f1": lost}]}, {"a": [{"f1": f1}], "b": []}]
    (said,) = NestedRemovesAbsorption().notes(seeds)
    assert (
        said
        == f"parents with latents of their own, of {2 * NESTED}: {2 * NESTED} in a, 4 in b; 4 in every arm are counted"
    )


def test_shrinkage_of_a_shrunken_dictionary_and_its_control(world, bench):
    """A dictionary that writes 0.8 of each coordinate, as pairs of latents for the two signs. Its control writes all of
    it, and a tenth less where the rows it is fitted to are a tenth shorter."""
    (site,) = find_sites(bench.network, "act")
    mean = bench.harvest(0).chunk(0)[site].mean(0)
    eye = torch.eye(len(mean))
    both = torch.cat([eye, -eye])
    arrays = {"W_enc": both, "b_enc": torch.zeros(len(both)), "W_dec": 0.8 * both, "b_dec": mean}
    width = {site: len(mean)}
    group = Group([SAE(width, width, Threshold(torch.zeros(len(both))), arrays)])
    claim, b = JumpReLURemovesShrinkage(), Bootstrap(N)
    seeded = claim.bench(bench, 0)
    counted = tally(claim, seeded, group, world.data["held_out"])
    (defect,), (control,) = claim.defects([counted], b), claim.controls([counted], b)
    assert defect == pytest.approx(0.2, abs=1e-5)
    assert control == pytest.approx(0.0, abs=1e-5)
    rows = seeded.fit
    assert len(rows) == FIT_ROWS
    atoms, bias = refit(group.encode({site: rows})[0].z, 0.8 * both, 0.9 * rows)
    torch.testing.assert_close(atoms.float(), 0.9 * both, atol=1e-4, rtol=0)
    torch.testing.assert_close(bias.float(), 0.9 * mean, atol=1e-4, rtol=0)
