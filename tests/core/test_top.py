import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import top as module
from understudy.core.top import top


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 10**6), st.sampled_from([None, 3, 1]))
def test_blocks_find_what_a_full_ranking_finds(k, n, seed, levels):
    """Whatever n is a multiple of. With `levels` most entries are equal: values are compared, and ids are distinct."""
    k = min(k, n)
    block = torch.randn(5, n, generator=torch.Generator().manual_seed(seed))
    if levels:
        block = (block * levels).round()
    ids, values = top(block, k)
    assert torch.equal(values.sort(1).values, block.topk(k, dim=1).values.sort(1).values)
    assert torch.equal(block.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_blocks_are_used_where_they_help():
    """Otherwise the tests above would only ever see `topk`."""
    assert [module.block_size(*s) for s in ((8192, 32), (24576, 32), (65536, 64))] == [16, 32, 32]
    assert module.block_size(700, 9) > 1
    assert module.block_size(10, 9) == 1
