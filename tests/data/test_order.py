"""Order: a stream that any step can be drawn from without the steps before it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.records.errors import BadData
from understudy.data import Order

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63)


@given(n=sizes, seed=seeds, epoch=st.integers(0, 5))
def test_each_epoch_holds_every_item_once(n, seed, epoch):
    drawn = Order(n, seed).stream(epoch * n, (epoch + 1) * n)
    assert sorted(drawn.tolist()) == list(range(n))


@given(n=sizes, seed=seeds, batch_size=st.integers(1, 90), step=st.integers(0, 8))
def test_resuming_at_any_step_gives_the_same_batches(n, seed, batch_size, step):
    run = Order(n, seed)
    batches = [run.batch(number, batch_size) for number in range(step + 1)]
    assert torch.equal(Order(n, seed).batch(step, batch_size), batches[-1])
    assert torch.equal(torch.cat(batches), Order(n, seed).stream(0, (step + 1) * batch_size))


def test_the_stream_does_not_depend_on_the_batch_size():
    order = Order(10, 3)
    small, large = ([order.batch(step, size) for step in range(60 // size)] for size in (2, 15))
    assert torch.equal(torch.cat(small), torch.cat(large))


def test_epochs_and_seeds_differ():
    first, second = Order(100, 0).batch(0, 100), Order(100, 0).batch(1, 100)
    assert not torch.equal(first, second)
    assert not torch.equal(first, Order(100, 1).batch(0, 100))


def test_the_order_is_the_same_on_every_machine():
    assert Order(8, 0).batch(0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_nothing_to_order_is_an_error():
    with pytest.raises(BadData, match="n=0"):
        Order(0)
    with pytest.raises(BadData, match="runs forward"):
        Order(3).stream(4, 2)
