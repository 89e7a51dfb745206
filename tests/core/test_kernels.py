"""The Triton kernels against their eager twins: in Triton's interpreter without a GPU, on it where there is one."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from itertools import product

import pytest
import torch

from understudy.core import pattern as patterns
from understudy.core import top as tops
from understudy.core.candidates import largest_of_candidates
from understudy.core.pattern import Decode, Pattern, Sampled

if find_spec("triton") is None:
    missing = "triton is not installed: torch's CUDA builds bring it, else `pip install triton` (1 GB)"
    if os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing, allow_module_level=True)

from understudy.core import kernels

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def made(counts: list[int], n_latents: int, seed: int = 0) -> Pattern:
    """A pattern with so many latents at each row; ids may repeat within a row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, n_latents, (sum(counts),), generator=generator)
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    return Pattern(ids.to(DEVICE), offsets.to(DEVICE), n_latents)


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


RAGGED = [3, 0, 1, 17, 16, 0]


@pytest.mark.parametrize("d", [1, 7, 300])
def test_bag_and_dot_equal_dense_products(d):
    p, table, left = made(RAGGED, 11), drawn(11, d), drawn(len(RAGGED), d, seed=2)
    values = drawn(len(p.ids), seed=3)
    dense = values.new_zeros(len(RAGGED), 11).index_put((p.rows, p.ids), values, accumulate=True)
    torch.testing.assert_close(kernels.bag(p.ids, table, p.offsets, values), dense @ table)
    torch.testing.assert_close(kernels.dot(p.ids, p.offsets, left, table), (left @ table.T)[p.rows, p.ids])


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_a_row_of_many_occurrences_is_summed_in_segments_to_the_same(count):
    p, table = made([2, count, 0, 512, 1], 5), drawn(5, 9)
    values = drawn(len(p.ids), seed=3)
    dense = values.new_zeros(5, 5).index_put((p.rows, p.ids), values, accumulate=True)
    torch.testing.assert_close(kernels.bag(p.ids, table, p.offsets, values), dense @ table, rtol=1e-5, atol=1e-4)


def test_sums_of_half_precision_are_taken_in_fp32():
    """257 times 1 is 256 where sums round to bf16 one by one."""
    ones = torch.ones(4, 8, dtype=torch.bfloat16, device=DEVICE)
    p = made([250], 4)
    out = kernels.bag(p.ids, ones, p.offsets, torch.ones(250, device=DEVICE))
    assert (out == 250).all()
    long = torch.ones(1, 300, dtype=torch.bfloat16, device=DEVICE)
    ids, offsets = torch.zeros(1, dtype=torch.long, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    assert kernels.dot(ids, offsets, long, long).item() == 300


@pytest.mark.parametrize(("n", "k"), [*product((1, 33, 300), (1,)), (300, 32), (300, 300)])
def test_top_finds_what_topk_finds(n, k):
    x = drawn(5, n)
    x[1] = 0.0
    x[2, ::2] = -torch.inf
    x[3] = x[3].abs().neg()
    ids, values = kernels.top(x, k)
    assert torch.equal(values.sort(1, descending=True).values, x.topk(k).values)
    assert torch.equal(x.gather(1, ids), values)
    assert (ids.diff() > 0).all(), "ids rise, so none is twice"


def test_of_equal_values_the_first_are_kept_and_nan_is_largest():
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 5.0, torch.nan, 1.0, 2.0]], device=DEVICE)
    ids, _ = kernels.top(x, 2)
    assert ids.tolist() == [[1, 2], [1, 2]]


def test_gradients_through_the_kernels_are_the_eager_ones(monkeypatch):
    def gradients() -> list[torch.Tensor | None]:
        p = made([4, 0, 9, 300], 13)
        x, W, b = (drawn(*s, seed=i).requires_grad_() for i, s in enumerate([(4, 20), (13, 20), (13,)]))
        W_dec = drawn(13, 6, seed=5).requires_grad_()
        values = Sampled.apply(x, W, b, p, None)
        y = Decode.apply(values.relu(), W_dec, p)  # pyright: ignore
        (y * drawn(4, 6, seed=6)).sum().backward()
        return [y.detach(), *(t.grad for t in (x, W, b, W_dec))]

    monkeypatch.setattr(patterns, "kernels_for", lambda like: None)
    eager = gradients()
    used = []
    monkeypatch.setattr(patterns, "kernels_for", lambda like: used.append(like) or kernels)
    for found, wanted in zip(gradients(), eager, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert len(used) >= 5


@pytest.mark.parametrize("search", [tops.largest, partial(largest_of_candidates, bits="bf16")])
def test_a_search_by_kernels_keeps_the_latents_that_the_eager_one_keeps(monkeypatch, search):
    x, W, b = drawn(6, 16), drawn(300, 16, seed=2), drawn(300, seed=3)
    monkeypatch.setattr(tops, "kernels_for", lambda like: None)
    wanted = search(x, W, b, 5)[0].view(6, 5).sort(1).values
    used = []
    monkeypatch.setattr(tops, "kernels_for", lambda like: used.append(like) or kernels)
    ids, values = search(x, W, b, 5)
    assert torch.equal(ids.view(6, 5).sort(1).values, wanted)
    torch.testing.assert_close(values.view(6, 5), (x @ W.T + b).gather(1, ids.view(6, 5)))
    assert used


@pytest.mark.skipif(GPU, reason="there is a GPU: the kernels ran on it")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_compile_for_a_gpu_without_one(dtype):
    """The interpreter forgives types that the compiler does not."""
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype], env=plain, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["_sum_kernel", "_dot_kernel", "_top_kernel"], done.stderr


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from understudy.core import kernels

t, i = "*" + sys.argv[1], "*i64"
jitted = {
    "_sum_kernel": ((t, i, i, t, i, i, t, "i32"), {"D": 512}),
    "_dot_kernel": ((i, i, t, t, t, "i32"), {"Z": 16, "D": 256}),
    "_top_kernel": ((t, i, t, "i32", "i32"), {"N": 2048}),
}
for name, (types, constants) in jitted.items():
    fn = getattr(kernels, name)
    signature = dict(zip(fn.arg_names, (*types, *["constexpr"] * len(constants)), strict=True))
    made = compile(ASTSource(fn=fn, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    if len(made.asm["cubin"]):
        print(name)
"""
