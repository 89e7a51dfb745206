"""Parameter components of a Linear: what they write, what is learned, and how they are tied."""

import pytest
import torch
from torch import nn

from tests.contracts.customers import Net
from understudy.core.batch import Batch
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadInput
from understudy.core.replacement import MEASURED_ERRORS, Replacement
from understudy.core.site import Site
from understudy.dictionaries import Components, TiedComponents
from understudy.dictionaries.components import is_linear, linear_map
from understudy.sparsity import CausalImportance

N, D, H = 12, 6, 4


class Two(nn.Module):
    """x [batch, pos, 6] -> up -> ReLU -> down, which is up's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H, bias=False), nn.Linear(H, D)
        with torch.no_grad():
            self.down.weight.copy_(self.up.weight.T)

    def forward(self, x):
        return self.down(self.up(x).relu())


def network() -> Net:
    torch.manual_seed(0)
    x = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1))
    return Net(Two(), Batch({"x": x}, mask=torch.ones(3, 5, dtype=torch.bool)))


def started(net: Net, cls=Components, seed: int = 0) -> Group:
    acts = net.record(net.example(), [Site(m, p) for m in ("up", "down") for p in ("in", "out")])
    sites = [((Site(m, "in"),), (Site(m),)) for m in ("up", "down")]
    members = [cls.begin(net, r, w, N, CausalImportance.start(N), acts, seed + i) for i, (r, w) in enumerate(sites)]
    return cls.group(members, acts)


def all_open(member: Components) -> None:
    with torch.no_grad():
        member.sparsity.w_out.zero_()
        member.sparsity.b_out.fill_(2.0)


@pytest.mark.parametrize("cls", [Components, TiedComponents])
def test_training_starts_with_parts_that_sum_to_the_weight(cls):
    """Up reads 6 dimensions and down 4, and there are 16 parts: no direction is left to the delta component."""
    net = network()
    acts = net.record(net.example(), [Site(m, p) for m in ("up", "down") for p in ("in", "out")])
    sites = [((Site(m, "in"),), (Site(m),)) for m in ("up", "down")]
    members = [cls.begin(net, r, w, 16, CausalImportance.start(16), acts, i) for i, (r, w) in enumerate(sites)]
    for member in cls.group(members, acts).members:
        torch.testing.assert_close(member.delta(), torch.zeros_like(member.weight), rtol=0, atol=1e-5)
        torch.testing.assert_close(member.W_enc.T @ member.W_dec, member.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_latents", [1, 5, 6, 7])
def test_parts_start_no_longer_than_they_help(n_latents):
    """As many parts as dimensions are nearly dependent in some draws: what they hardly span stays with the delta."""
    net = network()
    weight = net.module.up.weight.detach()
    for seed in range(50):
        rule = CausalImportance.start(n_latents)
        made = Components.begin(net, (Site("up", "in"),), (Site("up"),), n_latents, rule, {}, seed)
        assert made.W_dec.norm() < 10 * weight.norm()
        assert made.delta().norm() < weight.norm() * 1.0001


@pytest.mark.parametrize("cls", [Components, TiedComponents])
def test_with_all_gates_open_it_is_the_network_itself(cls):
    net, batch = network(), network().example()
    group = started(net, cls)
    for member in group.members:
        all_open(member)
    with torch.no_grad():
        out = Replacement(net, [group]).run(batch).output
    torch.testing.assert_close(out, net(batch), rtol=1e-5, atol=1e-5)


def test_with_all_gates_closed_only_the_rest_of_the_weight_is_written():
    net = network()
    group = started(net)
    member = group.members[0]
    with torch.no_grad():
        member.sparsity.w_out.zero_()
        member.sparsity.b_out.fill_(-1.0)
        x = net.record(net.example(), member.reads)
        wanted = x[member.reads[0]] @ (net.module.up.weight.T - member.W_enc.T @ member.W_dec)
        torch.testing.assert_close(member.reconstruct(x)[member.writes[0]], wanted)


def test_a_value_is_the_inner_product_times_its_gate_and_linearises_to_itself():
    net = network()
    member = started(net).members[0]
    with torch.no_grad():
        acts = net.record(net.example(), member.reads)
        x = acts[member.reads[0]].flatten(0, 1)
        z = member.encode({member.reads[0]: x}).z
        assert 0 < len(z.values) < len(x) * N
        inner = (x @ member.W_enc.T)[z.rows, z.ids]
        torch.testing.assert_close(z.values, inner * z.gate)
        assert bool((z.gate > 0).all())
        assert bool((z.gate <= 1).all())
        assert bool((z.values < 0).any()), "components are signed"
        for whole in (member, member.restrict(torch.tensor([1, 4, 7]))):
            z = whole.encode({member.reads[0]: x}).z
            rows, bias, index = whole.linearise({member.reads[0]: x}, z)
            torch.testing.assert_close((rows[member.reads[0]][index] * x[z.rows]).sum(-1) + bias[index], z.values)


def test_only_factors_and_gates_are_learned_and_the_sum_stays_the_weight():
    net = network()
    group = started(net)
    names = {name.split(".", 2)[2] for name, _ in group.named_parameters()}
    assert names == {"W_enc", "W_dec", "sparsity.w_in", "sparsity.b_in", "sparsity.w_out", "sparsity.b_out"}
    member = group.members[1]
    with torch.no_grad():
        member.W_enc.add_(0.3)
        member.W_dec.mul_(1.7)
    group.after_step()
    whole = member.W_skip + member.W_enc.T @ member.W_dec
    torch.testing.assert_close(whole, net.module.down.weight.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(member.b_dec, net.module.down.bias)


def test_masks_of_one_and_a_whole_delta_are_the_linear_and_masks_of_zero_its_bias():
    net = network()
    member = started(net).members[1]
    read, write = member.reads[0], member.writes[0]
    acts = net.record(net.example(), [read, write])
    rows = acts[read].flatten(0, 1)
    whole = member.masked(torch.ones(len(rows), N), torch.ones(len(rows)))
    torch.testing.assert_close(whole.reconstruct(acts)[write], acts[write], rtol=1e-5, atol=1e-5)
    nothing = member.masked(torch.zeros(len(rows), N), torch.zeros(len(rows)))
    torch.testing.assert_close(nothing.reconstruct(acts)[write], net.module.down.bias.expand(acts[write].shape))
    one = torch.zeros(len(rows), N)
    one[:, 3] = 0.5
    found = member.masked(one, torch.zeros(len(rows))).reconstruct(acts)[write].flatten(0, 1)
    wanted = 0.5 * (rows @ member.W_enc[3])[:, None] * member.W_dec[3] + net.module.down.bias
    torch.testing.assert_close(found, wanted)


def test_tied_components_share_their_directions_and_not_their_gates():
    one, other = started(network(), TiedComponents).members
    assert other.W_enc is one.W_dec
    assert other.W_dec is one.W_enc
    assert other.sparsity.w_in is not one.sparsity.w_in
    torch.testing.assert_close(other.W_skip, one.W_skip.T)


def test_what_has_no_transpose_is_not_tied():
    net = network()
    with torch.no_grad():
        net.module.down.weight[0, 0] += 1
    with pytest.raises(BadInput, match=r"up has the transpose of no other Linear.*--kind components"):
        started(net, TiedComponents)


def test_finished_components_are_the_same_dictionary_and_obey_measured_errors():
    net, batch = network(), network().example()
    group = started(net)
    done = Group([m.thresholded({}).folded() for m in group.members])
    with torch.no_grad():
        acts = net.record(batch, (*group.reads, *group.writes))
        for site, hat in group.reconstruct(acts).items():
            torch.testing.assert_close(done.reconstruct(acts)[site], hat)
        replacement = Replacement(net, [done])
        out = replacement.run(batch, MEASURED_ERRORS, replacement.record(batch)).output
    torch.testing.assert_close(out, net(batch), rtol=0, atol=1e-5)


def test_the_weight_of_a_conv1d_is_its_transpose():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    module, x = Conv1D(3, 5), torch.randn(2, 5)
    weight, bias = linear_map(module)
    torch.testing.assert_close(x @ weight + bias, module(x))
    assert is_linear(module)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Conv1d(2, 3, 1), nn.Embedding(3, 2)])
def test_other_modules_have_no_components(module):
    assert not is_linear(module)
    with pytest.raises(BadInput, match="parts of a Linear's weight"):
        linear_map(module)


def test_a_linear_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(D, D)

        def forward(self, x):
            return self.up(self.up(x))

    net = Net(Twice(), network().example(), calls="time")
    with pytest.raises(BadInput, match="up is called 2 times"):
        Components.begin(net, (Site("up", "in"),), (Site("up"),), N, CausalImportance.start(N), {}, 0)
