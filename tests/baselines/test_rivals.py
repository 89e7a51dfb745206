"""Each rival is the best of its kind: its error is the one that theory gives."""

import pytest
import torch

from understudy.baselines import PCA, Constant, LinearMap, PositionMean, RandomDictionary, Resample, TopNeurons
from understudy.baselines.linear_map import ridge_regression
from understudy.core.dictionary import Context
from understudy.core.records.errors import NeedsRecording
from understudy.core.site import Site
from understudy.sparsity import Identity, TopK

A, B = Site("a"), Site("b")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows(n=300, d=6) -> torch.Tensor:
    return torch.randn(n, d) @ torch.randn(d, d) + 3


def error(dictionary, acts, site=B) -> float:
    return (acts[site] - dictionary.reconstruct(acts)[site]).double().square().sum().item()


# -- PCA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_the_error_of_pca_is_the_tail_of_the_eigenvalues(k):
    x = rows()
    values = torch.linalg.eigvalsh((x - x.mean(0)).double().T @ (x - x.mean(0)).double())
    pca = PCA.fit(A, {A: x}, k, Identity())
    assert error(pca, {A: x}, A) == pytest.approx(values[: 6 - k].sum().item(), rel=1e-4, abs=1e-4)
    assert pca.is_oracle
    assert bool((pca.encode({A: x}).z.l0() == k).all())


def test_pca_of_more_than_the_width_is_all_of_it():
    pca = PCA.fit(A, {A: rows()}, 99, Identity())
    assert pca.n_latents == 6
    torch.testing.assert_close(pca.W_dec @ pca.W_dec.T, torch.eye(6), rtol=0, atol=1e-5)


def test_no_other_directions_beat_pca():
    x = rows()
    best = error(PCA.fit(A, {A: x}, 2, Identity()), {A: x}, A)
    for seed in range(5):
        Q, _ = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(seed)))
        centred = x - x.mean(0)
        assert (centred - centred @ Q @ Q.T).square().sum() > best


# -- linear map -------------------------------------------------------------------------------------------------------


def test_a_linear_map_is_exact_on_linear_data_and_writes_the_mean_of_unrelated_data():
    x, W, bias = rows(), torch.randn(6, 4), torch.randn(4)
    acts = {A: x, B: x @ W + bias}
    fitted = LinearMap.fit(A, B, acts, Identity(), ridge=0)
    torch.testing.assert_close(fitted.reconstruct(acts)[B], acts[B], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fitted.W_skip, W, rtol=1e-3, atol=1e-3)
    other = {A: rows(), B: torch.randn(300, 4)}
    fitted = LinearMap.fit(A, B, other, Identity(), ridge=1e9)
    torch.testing.assert_close(fitted.reconstruct(other)[B], other[B].mean(0).expand(300, 4), rtol=1e-4, atol=1e-4)
    assert fitted.n_latents == 0
    assert not fitted.is_oracle


def test_ridge_regression_minimises_what_it_says():
    x, y, ridge = rows(50).double(), torch.randn(50, 3).double(), 0.1
    W, bias = ridge_regression(x, y, ridge)
    weight = ridge * (x - x.mean(0)).square().sum(0).mean()

    def cost(W, bias):
        return ((y - x @ W - bias).square().sum() + weight * W.square().sum()).item()

    for _ in range(10):
        assert cost(W + 1e-3 * torch.randn_like(W), bias) > cost(W, bias)
        assert cost(W, bias + 1e-3 * torch.randn_like(bias)) > cost(W, bias)


# -- random dictionary ------------------------------------------------------------------------------------------------


def test_the_decoder_of_random_directions_is_the_best_for_its_codes():
    x = rows(500)
    acts = {A: x, B: (x @ torch.randn(6, 4)).relu()}
    made = RandomDictionary.fit(A, B, 12, TopK(3), acts, seed=0, ridge=0)
    best = error(made, acts)
    for name in ("W_dec", "b_dec"):
        parameter = getattr(made, name)
        kept = parameter.detach().clone()
        for _ in range(10):
            parameter.data = kept + 1e-2 * torch.randn_like(kept)
            assert error(made, acts) > best
        parameter.data = kept
    assert bool((made.encode(acts).z.l0() <= 3).all())
    assert not torch.equal(made.W_enc, RandomDictionary.fit(A, B, 12, TopK(3), acts, seed=1).W_enc)


def test_latents_that_never_fire_do_not_break_the_fit():
    x = torch.eye(3).repeat(4, 1)
    made = RandomDictionary.fit(A, A, 64, TopK(1), {A: x}, seed=0)
    assert bool(torch.isfinite(made.W_dec).all())


# -- neurons ----------------------------------------------------------------------------------------------------------


def neurons(k, fill=None):
    h, W, bias = rows(40, 8).relu(), torch.randn(8, 5), torch.randn(5)
    return TopNeurons(A, B, W, bias, k, fill), {A: h, B: h @ W + bias}


@pytest.mark.parametrize("k", [8, 99])
@pytest.mark.parametrize("filled", [False, True])
def test_all_neurons_are_exact(k, filled):
    made, acts = neurons(k, torch.rand(8) if filled else None)
    torch.testing.assert_close(made.reconstruct(acts)[B], acts[B], rtol=1e-4, atol=1e-4)
    assert made.is_oracle


def test_the_neurons_that_write_most_are_kept_and_others_stay_at_their_fill():
    W = torch.tensor([[1.0, 0.0], [0.0, 10.0], [2.0, 0.0]])
    acts = {A: torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0]])}
    plain = TopNeurons(A, B, W, None, 1)
    assert plain.reconstruct(acts)[B].tolist() == [[0, 10], [2, 0]]
    filled = TopNeurons.mean_filled(A, B, W, torch.ones(2), 1, acts)
    assert filled.base.tolist() == [1 + 1.5 + 3, 1 + 5]
    assert filled.reconstruct(acts)[B].tolist() == [[5.5, 11], [5.5, 1]]


def test_channels_of_a_site_are_its_coordinates():
    x = rows()
    made = TopNeurons.channels(A, 6, 6, {A: x})
    torch.testing.assert_close(made.reconstruct({A: x})[A], x, rtol=1e-4, atol=1e-4)
    assert (error(TopNeurons.channels(A, 6, 1, {A: x}), {A: x}, A)) < (x - x.mean(0)).square().sum()


# -- constants --------------------------------------------------------------------------------------------------------


def test_constants_write_what_they_say_everywhere():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert Constant.zero(A, {A: x}).reconstruct({A: x})[A].tolist() == [[0, 0], [0, 0]]
    mean = Constant.mean(A, {A: x})
    assert mean.reconstruct({A: x.reshape(1, 2, 2)})[A].tolist() == [[[2, 4], [2, 4]]]
    assert mean.n_latents == 0
    assert mean.encode({A: x}).z.l0().tolist() == [0, 0]
    assert mean.atoms(torch.zeros(0, dtype=torch.long))[A].shape == (0, 2)


def test_no_constant_beats_the_mean():
    x = rows()
    best = error(Constant.mean(A, {A: x}), {A: x}, A)
    assert error(Constant(A, x.mean(0) + 0.1), {A: x}, A) > best
    assert error(Constant(A, x.median(0).values), {A: x}, A) > best


def test_position_means_and_the_overall_mean_beyond_them():
    acts = torch.tensor([[[1.0], [10.0]], [[3.0], [30.0]]])
    made = PositionMean.fit(A, acts)
    longer = torch.zeros(2, 4, 1)
    assert made.reconstruct({A: longer})[A].squeeze(-1).tolist() == [[2, 20, 11, 11]] * 2
    assert made.reconstruct({A: longer[:, :1]})[A].squeeze(-1).tolist() == [[2]] * 2
    assert made.scope == "sequence"


def test_resample_writes_the_other_sequences_and_asks_for_them():
    x, other = torch.zeros(2, 3, 2), torch.tensor([1.0, -2.0]).expand(2, 3, 2)
    made = Resample(A, 2)
    with pytest.raises(NeedsRecording, match="needs a recording of the sequences to take activations from"):
        made.reconstruct({A: x})
    assert torch.equal(made.reconstruct({A: x}, Context(clean={A: other}))[A], other)


def test_resample_holds_nothing_between_encoding_and_writing():
    """What it writes is in its latents: sequences encoded in between change nothing, and an edit has its effect."""
    x, made = torch.zeros(1, 1, 2), Resample(A, 2)
    first, second = (torch.tensor([[[a, 5.0]]]) for a in (3.0, 4.0))
    z = made.encode({A: x}, Context(clean={A: first})).z
    made.encode({A: x}, Context(clean={A: second}))
    assert torch.equal(made.write(z, {A: x})[A], first)
    kept = z.keep(torch.tensor([True, False]))
    assert made.write(kept, {A: x})[A].tolist() == [[[3, 0]]]
    assert made.atoms(torch.tensor([1]))[A].tolist() == [[0, 1]]


def test_places_that_do_not_count_are_in_no_mean():
    x = torch.randn(5, 4, 3)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[:, 0], mask[2, 3] = False, False
    spoilt = torch.where(mask[..., None], x, torch.tensor(1e6))
    fitted = PositionMean.fit(A, spoilt, mask)
    torch.testing.assert_close(fitted.value, x[mask].mean(0))
    torch.testing.assert_close(fitted.table[0], fitted.value)
    torch.testing.assert_close(fitted.table[1], x[:, 1].mean(0))
    torch.testing.assert_close(fitted.table[3], x[[0, 1, 3, 4], 3].mean(0))


def test_rivals_move_with_their_group():
    """What a rival holds are buffers, so that a device or a dtype reaches all of it."""
    neurons = TopNeurons(A, B, torch.randn(4, 3), None, 2)
    mean = PositionMean(A, torch.zeros(2, 3), torch.zeros(3))
    for rival in (neurons, mean, Constant(A, torch.zeros(3))):
        loose = [k for k, v in vars(rival).items() if isinstance(v, torch.Tensor)]
        assert not loose
        assert all(b.dtype == torch.float64 for b in rival.to(torch.float64).buffers())
