import itertools
from math import log

import numpy as np
import pytest
import torch

from understudy.core.records.errors import BadData
from understudy.core.records.metric import Measured, NotMeasured
from understudy.metrics import Bootstrap, NGrams, equivalent_ngram


def markov(n: int, n_vocab: int, order: int, seed: int, concentration: float = 0.3) -> tuple[torch.Tensor, np.ndarray]:
    """A stream whose next token depends on the `order` before it, and the true loss of each token."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(0).dirichlet(np.full(n_vocab, concentration), n_vocab**order)
    stream, losses, state = [], [], 0
    draws = rng.random(n)
    cumulative = table.cumsum(1)
    for u in draws:
        token = min(int(np.searchsorted(cumulative[state], u)), n_vocab - 1)
        losses.append(-log(table[state, token]))
        state = (state * n_vocab + token) % n_vocab**order
        stream.append(token)
    return torch.tensor(stream), np.array(losses)


def scored_of(document: torch.Tensor) -> torch.Tensor:
    scored = torch.zeros_like(document, dtype=torch.bool)
    scored[:, :-1] = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    return scored


@pytest.mark.parametrize("n_tokens", [60, 5000])
def test_probabilities_sum_to_one_in_every_context(n_tokens):
    n_vocab = 4
    stream, _ = markov(n_tokens, n_vocab - 1, 1, seed=1)  # token 3 is never seen
    document = torch.arange(n_tokens) // 7
    model = NGrams.fit(stream, document, n_vocab)
    for length in range(1, 6):
        for context in itertools.product(range(n_vocab), repeat=length):
            rows = torch.tensor([[*context, w] for w in range(n_vocab)])
            scored = torch.zeros_like(rows, dtype=torch.bool)
            scored[:, length - 1] = True
            losses = model.losses(rows, torch.zeros_like(rows), scored)
            probabilities = torch.exp(-losses[:, :, length - 1].double()).sum(1)
            torch.testing.assert_close(probabilities, torch.ones(6, dtype=torch.float64), rtol=0, atol=2e-6)


def test_unigram_by_hand():
    """Counts 3, 1, 0 and the fall-back discount of a half: (2.5, 0.5, 0) / 4 and 1 / 4 shared by three tokens."""
    model = NGrams.fit(torch.tensor([0, 0, 1, 0]), torch.zeros(4, dtype=torch.long), 3, max_order=1)
    rows = torch.tensor([[0, 0], [0, 1], [0, 2]])
    losses = model.losses(rows, torch.zeros_like(rows), torch.tensor([[True, False]] * 3))
    expected = [2.5 / 4 + 0.25 / 3, 0.5 / 4 + 0.25 / 3, 0.25 / 3]
    torch.testing.assert_close(torch.exp(-losses[1, :, 0]), torch.tensor(expected))
    torch.testing.assert_close(losses[0, :, 0], torch.full((3,), log(3)))
    assert losses[:, :, 1].eq(0).all()


@pytest.mark.parametrize(("memory", "enough"), [(1, 2), (2, 3)])
def test_a_markov_chain_is_known_by_the_order_that_holds_its_memory(memory, enough):
    stream, _ = markov(60_000, 6, memory, seed=2)
    model = NGrams.fit(stream, torch.zeros(60_000, dtype=torch.long), 6)
    held_out, true = markov(6000, 6, memory, seed=3)
    rows = held_out.reshape(30, 200)
    document = torch.zeros_like(rows)
    losses = model.losses(rows, document, scored_of(document)).double().sum((1, 2)) / (30 * 199)
    rate = true.reshape(30, 200)[:, 1:].mean()
    assert losses[enough] == pytest.approx(rate, abs=0.015)
    assert losses[enough - 1] > rate + 0.1
    assert losses[5] == pytest.approx(rate, abs=0.06)  # higher orders have nothing to add and little to lose


def test_contexts_stay_in_their_document_and_row():
    stream, _ = markov(4000, 5, 2, seed=4)
    model = NGrams.fit(stream, torch.arange(4000) // 50, 5)
    rows = torch.randint(0, 5, (6, 20))
    document = (torch.arange(20) >= 8).long().expand(6, 20)
    scored = scored_of(document)
    before = model.losses(rows, document, scored)
    changed = rows.clone()
    changed[:, :8] = (changed[:, :8] + 1) % 5
    after = model.losses(changed, document, scored)
    torch.testing.assert_close(before[:, :, 8:], after[:, :, 8:], rtol=0, atol=0)
    alone = model.losses(rows[2:3, 8:], document[2:3, 8:], scored[2:3, 8:])
    torch.testing.assert_close(before[:, 2:3, 8:], alone, rtol=0, atol=0)
    # One token of context is all there is: orders from the bigram on agree.
    for order in range(3, 6):
        torch.testing.assert_close(before[order, :, 8], before[2, :, 8], rtol=0, atol=0)


def test_counting_does_not_cross_documents():
    stream = torch.tensor([0, 1] * 500)
    together = NGrams.fit(stream, torch.zeros(1000, dtype=torch.long), 3)
    apart = NGrams.fit(stream, torch.arange(1000) // 2, 3)  # every document is "0 1": nothing ever follows 1
    rows, scored = torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    document = torch.zeros_like(rows)
    assert together.losses(rows, document, scored)[2, 0, 0] < 0.01
    assert apart.losses(rows, document, scored)[2, 0, 0] > 0.5


def test_padding_rows_and_repeats_do_not_matter():
    stream, _ = markov(600, 5, 1, seed=5)
    document = torch.arange(600) // 37
    model = NGrams.fit(stream, document, 5)
    padded = NGrams.fit(
        torch.cat([stream, torch.full((24,), 99)]).reshape(-1, 48),
        torch.cat([document, -torch.ones(24).long()]).reshape(-1, 48),
        5,
    )
    rows = stream.reshape(20, 30)
    scored = scored_of(document.reshape(20, 30))
    torch.testing.assert_close(
        model.losses(rows, document.reshape(20, 30), scored), padded.losses(rows, document.reshape(20, 30), scored)
    )
    nothing = model.losses(rows, document.reshape(20, 30), torch.zeros_like(scored))
    assert nothing.eq(0).all()


def test_bad_tokens_and_places_are_refused():
    with pytest.raises(BadData, match="outside a vocabulary of 3"):
        NGrams.fit(torch.tensor([0, 3]), torch.zeros(2, dtype=torch.long), 3)
    with pytest.raises(BadData, match="no token"):
        NGrams.fit(torch.tensor([0]), torch.tensor([-1]), 3)
    model = NGrams.fit(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.long), 3)
    with pytest.raises(BadData, match="Row 0, place 1 is scored"):
        model.losses(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool))


ORDERS = np.array([4.0, 3.0, 2.0, 1.5, 1.6, 1.4])


@pytest.mark.parametrize(
    ("loss", "order"), [(4.0, 0), (3.5, 0.5), (3.0, 1), (2.25, 1.75), (1.5, 3), (1.45, 4.5), (1.4, 5)]
)
def test_equivalent_order_by_hand(loss, order):
    """Order 4 is worse than order 3, so it counts as order 3 and the way down continues from there."""
    counts = np.arange(5, 25)
    figure = equivalent_ngram(Bootstrap(20), loss * counts, ORDERS[:, None] * counts, counts)
    assert isinstance(figure, Measured)
    assert figure.value == pytest.approx(order, abs=1e-6)
    assert figure.unit == "order"
    assert 0 <= figure.low <= figure.value <= figure.high <= 5


def test_outside_the_ladder_there_is_a_reason_and_a_distance():
    counts = np.full(20, 10)
    better = equivalent_ngram(Bootstrap(20), 1.15 * counts, ORDERS[:, None] * counts, counts)
    assert isinstance(better, NotMeasured)
    assert "0.25 nats below order 5" in better.not_measured
    worse = equivalent_ngram(Bootstrap(20), 4.5 * counts, ORDERS[:, None] * counts, counts)
    assert isinstance(worse, NotMeasured)
    assert "worse than a uniform guess by 0.5 nats" in worse.not_measured
    nothing = equivalent_ngram(Bootstrap(20), 0.0 * counts, 0.0 * ORDERS[:, None] * counts, 0 * counts)
    assert isinstance(nothing, NotMeasured)


def test_the_interval_follows_the_noise():
    rng = np.random.default_rng(6)
    counts = np.full(400, 10)
    orders = np.array([4.0, 3.0, 2.0, 1.0])[:, None] * counts
    figure = equivalent_ngram(Bootstrap(400), counts * (2.5 + rng.normal(0, 1, 400)), orders, counts)
    assert isinstance(figure, Measured)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 / 20, rel=0.2)
