"""Tap: what is read is what was there, what is edited is what goes on, and no trap of hooks stays silent."""

import threading
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from understudy.core.records.errors import ActivationOverwritten, HooksIgnored, NoTensor, SiteNeverFired, UnknownName
from understudy.core.site import Site
from understudy.core.tap import Tap


class Block(nn.Module):
    """Takes and gives a mixture of things, as attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, *, hidden: Tensor, flag: bool = False):
        return {"ids": ids, "more": (None, self.lin(hidden)), "flag": flag}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.act = nn.Linear(4, 4), Block(), nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        try:
            ids = torch.arange(3)
            x = self.block(ids, hidden=self.first(x))["more"][1]
            return self.last(self.act(x))
        except Exception:  # the way some model code swallows errors
            return x.new_zeros(0)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


X = torch.arange(12.0).reshape(3, 4) / 12
FIRST, BLOCK = Site("first"), Site("block")


def test_reads_through_mixtures_and_keywords(model: Model):
    with Tap(model, [BLOCK, Site("block", "in"), Site("block", "in.hidden"), FIRST], clone=True) as tap:
        model(X)
    assert torch.equal(tap[Site("block", "in")], tap[FIRST])
    assert torch.equal(tap[Site("block", "in.hidden")], tap[FIRST])
    assert torch.equal(tap[BLOCK], model.block.lin(tap[FIRST]))


def test_edits_go_on_and_reads_see_what_was_made(model: Model):
    clean = model(X)
    with Tap(model, [FIRST], {FIRST: lambda v, call: v + 1}) as tap:
        edited = model(X)
    assert torch.equal(tap[FIRST], model.first(X))
    assert not torch.equal(edited, clean)
    assert torch.equal(model(X), clean)


def test_an_edit_of_a_named_path_keeps_the_rest(model: Model):
    seen = []
    site = Site("block", "out.more.1")
    handle = model.block.register_forward_hook(lambda m, a, out: seen.append(out))
    with Tap(model, edits={site: lambda v, call: v * 2}):
        model(X)
    handle.remove()
    assert seen[0]["flag"] is False
    assert seen[0]["more"][0] is None


def test_a_no_op_is_bit_identical_and_casts_stay_at_the_site(model: Model):
    clean = model(X)
    with Tap(model, edits={FIRST: lambda v, call: v.double()}):
        assert torch.equal(model(X), clean)


def test_stop_abandons_the_pass_past_except_clauses(model: Model):
    ran = []
    model.last.register_forward_hook(lambda *a: ran.append(1))
    with Tap(model, [FIRST], stop_after={FIRST: 1}) as tap:
        model(X)
        raise AssertionError("not reached")
    assert not ran
    assert torch.equal(tap[FIRST], model.first(X))


def test_gradients_reach_a_site(model: Model):
    with Tap(model, [FIRST], detach=False, clone=True) as tap:
        (gradient,) = torch.autograd.grad(model(X).sum(), tap[FIRST], allow_unused=True)
    assert gradient is None  # a clone is read beside the path
    with Tap(model, [FIRST], detach=False) as tap:
        (gradient,) = torch.autograd.grad(model(X).sum(), tap[FIRST])
    assert gradient.abs().sum() > 0


def test_overwritten_reads_raise_and_clones_do_not(model: Model):
    with pytest.raises(ActivationOverwritten, match="clone=True"), Tap(model, [BLOCK]), torch.no_grad():
        model(X)
    with Tap(model, [BLOCK], clone=True) as tap, torch.no_grad():
        model(X)
    assert tap[BLOCK].min() < 0


@pytest.mark.parametrize("edits", [False, True])
def test_a_silent_site_raises(model: Model, edits: bool):
    site = Site("block.unused")
    tap = Tap(model, edits={site: lambda v, call: v}) if edits else Tap(model, [site])
    with pytest.raises(SiteNeverFired, match=r"never reached block.unused:out"), tap:
        model(X)
    with pytest.raises(SiteNeverFired, match="#7"), Tap(model, [Site("first", call=7)]):
        model(X)


def test_an_error_of_the_model_is_not_hidden_by_ours(model: Model):
    with pytest.raises(ZeroDivisionError), Tap(model, [Site("block.unused")]):
        raise ZeroDivisionError


def test_what_is_not_there_is_named(model: Model):
    with pytest.raises(UnknownName, match=r"'block.lni' is not a known module of Model. Did you mean block.lin"):
        Tap(model, [Site("block.lni")])
    site = Site("block", "out.more.0")
    with pytest.raises(NoTensor, match=r"output is \{ids: .* more: \(NoneType"), Tap(model, [site]):
        model.block(torch.arange(3), hidden=X)


@pytest.mark.parametrize("new", [None, torch.zeros(1)])
def test_an_edit_must_keep_the_shape(model: Model, new: Tensor | None):
    tap = Tap(model.first, edits={Site(""): lambda v, call: new})  # pyright: ignore
    with pytest.raises(NoTensor, match=r"the edit at :out returned .*, not a torch.float32 tensor \(3, 4\)"), tap:
        model.first(X)


def test_compiled_modules_are_refused(model: Model):
    with pytest.raises(HooksIgnored, match=r"before torch.compile"):
        Tap(torch.compile(model), [Site("_orig_mod.first")])
    model.block.compile()
    with pytest.raises(HooksIgnored, match="compiled module"):
        Tap(model, [Site("block.lin")])
    Tap(model, [FIRST])


def test_calls_are_counted_within_one_pass():
    cell = nn.Linear(4, 4)
    twice = nn.Sequential(OrderedDict(a=cell, b=nn.ReLU(), c=cell))
    second = Site("a", call=1)
    with Tap(twice, [Site("a"), second]) as tap:
        twice(X)
        twice(X + 1)
    assert len(tap.calls(Site("a"))) == 4
    assert torch.equal(tap.calls(second)[1], tap.calls(Site("a"))[3])
    with pytest.raises(NoTensor, match=r"fired 4 times: use .calls\(site\)"):
        tap[Site("a")]


def test_threads_do_not_see_each_other(model: Model):
    wrong, start = [], threading.Barrier(4)

    def work(i: int) -> None:
        start.wait()
        for step in range(20):
            x = X + i + step
            with Tap(model, [FIRST], {FIRST: lambda v, call: v * (i + 1)}) as tap, torch.no_grad():
                out = model(x)
            same = torch.equal(tap[FIRST], model.first(x).detach())
            with torch.no_grad():
                expected = model.last(model.block.lin(model.first(x) * (i + 1)).relu())
            if not same or not torch.allclose(out, expected):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
