import pytest
import torch

from understudy.core.linear import LinearDictionary
from understudy.core.records.errors import UnderstudyError, WrongShape
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.sparsity import Identity, Threshold, TopK

A, B, C = Site("a"), Site("b"), Site("c")
N = 10


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Subtracting(LinearDictionary):
    subtracts_b_dec = True


def make(kind=LinearDictionary, rule=None, skip=True) -> LinearDictionary:
    """Two sites of unlike width read, two written; for an autoencoder the same ones."""
    reads = {A: 3, B: 4}
    writes = reads if kind is Subtracting else {B: 4, C: 2}
    d_in, d_out = sum(reads.values()), sum(writes.values())
    arrays = {
        "W_enc": torch.randn(N, d_in), "b_enc": torch.randn(N), "W_dec": torch.randn(N, d_out),
        "b_dec": torch.randn(d_out),
        "in_center": torch.randn(d_in), "in_scale": torch.rand(d_in) + 0.5, "out_center": torch.randn(d_out),
        "out_scale": torch.rand(d_out) + 0.5,
    }  # fmt: skip
    if skip:
        arrays["W_skip"] = torch.randn(d_in, d_out)
    return kind(reads, writes, rule or TopK(3), {k: v.double() for k, v in arrays.items()})


def acts() -> dict:
    return {s: torch.randn(2, 5, d).double() for s, d in ((A, 3), (B, 4))}


@pytest.mark.parametrize("kind", [LinearDictionary, Subtracting])
def test_it_is_the_formula_it_states(kind):
    d, x = make(kind), acts()
    whole = torch.cat([x[A], x[B]], -1)
    normal = (whole - d.in_center) / d.in_scale
    full = (normal - d.b_dec if kind is Subtracting else normal) @ d.W_enc.T + d.b_enc
    z = torch.zeros_like(full).scatter(-1, full.topk(3).indices, 1.0) * full.relu()
    y = (z @ d.W_dec + d.b_dec + normal @ d.W_skip) * d.out_scale + d.out_center
    torch.testing.assert_close(d.encode(x).z.dense(), z)
    out = d.reconstruct(x)
    assert list(out) == list(d.writes)
    torch.testing.assert_close(torch.cat(list(out.values()), -1), y)
    atoms = torch.cat(list(d.atoms(torch.tensor([7, 2])).values()), -1)
    torch.testing.assert_close(atoms, d.W_dec[[7, 2]] * d.out_scale)


@pytest.mark.parametrize("kind", [LinearDictionary, Subtracting])
def test_linearised_rows_give_pre_activations_from_raw_activations(kind):
    d, x = make(kind), acts()
    encoded = d.encode(x)
    rows, bias, index = d.linearise(x, encoded.z)
    total = bias[index].clone()
    for site in d.reads:
        total = total + (rows[site][index] * x[site].reshape(10, -1)[encoded.z.rows]).sum(-1)
    torch.testing.assert_close(total, encoded.pre.at(encoded.z))


def test_without_biases_or_normalisation_it_is_plain():
    W = torch.eye(3)
    d = LinearDictionary({A: 3}, {C: 3}, TopK(1), {"W_enc": W, "b_enc": torch.zeros(3), "W_dec": 2 * W})
    assert d.b_dec is None
    assert d.W_skip is None
    assert d.reconstruct({A: torch.tensor([[1.0, 5.0, 2.0]])})[C].tolist() == [[0, 10, 0]]


def test_half_precision_activations_are_encoded_in_the_weights_precision():
    d, x = make(), acts()
    z = d.encode({s: v.half() for s, v in x.items()}).z
    assert z.values.dtype == torch.float64


@pytest.mark.parametrize("skip", [True, False])
def test_some_latents_alone_are_what_they_were(skip):
    d, x = make(rule=Threshold(torch.rand(N).double()), skip=skip), acts()
    z, ids = d.encode(x).z, torch.tensor([8, 1, 5])
    part = d.restrict(ids)
    kept = z.keep(torch.isin(torch.arange(N), ids))
    assert part.n_latents == N
    torch.testing.assert_close(part.encode(x).z.dense(), kept.dense())
    for site, value in part.reconstruct(x).items():
        torch.testing.assert_close(value, d.write(kept, x)[site])
        torch.testing.assert_close(part.decode(z)[site], d.decode(kept)[site])
    for site, atoms in part.atoms(torch.tensor([5, 8])).items():
        torch.testing.assert_close(atoms, d.atoms(torch.tensor([5, 8]))[site])


def test_the_spec_holds_everything_and_copies_are_their_own():
    d = make(rule=Threshold(torch.rand(N).double()))
    spec = d.spec()
    assert spec.settings == {"sparsity": {"name": "threshold"}, "d_reads": [3, 4], "d_writes": [4, 2]}
    assert set(spec.arrays) == {*d.arrays(), "sparsity.theta"}
    copy = d.with_sparsity(TopK(2))
    with torch.no_grad():
        copy.W_enc.zero_()
    assert bool(d.W_enc.any())


def test_wrong_shapes_are_named():
    good = make().arrays()
    message = r"W_dec is \(10, 5\), but LinearDictionary reading .*'a:out': 3.* needs \(10, 6\)"
    with pytest.raises(WrongShape, match=message):
        LinearDictionary({A: 3, B: 4}, {B: 4, C: 2}, TopK(3), good | {"W_dec": good["W_dec"][:, :5]})
    with pytest.raises(WrongShape, match=r"reads d=4 at b:out but the network gives d=5\. Was it trained on"):
        make().encode({A: torch.zeros(1, 3), B: torch.zeros(1, 5)})


def test_a_rule_that_does_not_say_how_cannot_become_thresholds():
    class Odd(TopK):
        as_threshold = Sparsity.as_threshold

    with pytest.raises(UnderstudyError, match="Odd does not say how to become thresholds"):
        make(rule=Odd(2)).thresholded(acts())
    kept = make(rule=Identity())
    assert kept.thresholded(acts()) is kept
