"""Every hard customer is held to the same promises."""

import pytest
import torch

from tests.contracts.customers import CUSTOMERS, EXACT, Rule, customer, tokens
from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary, Group
from understudy.core.records.errors import AcausalReplacement, AmbiguousWrite, NeedsRecording, UnknownName, WrongShape
from understudy.core.replacement import INTERVENE, MEASURED_ERRORS, Replacement
from understudy.core.site import Site
from understudy.core.tap import Tap

NAMES = list(CUSTOMERS)
RUNNABLE = [n for n in NAMES if n != "crosscoder"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", RUNNABLE)
def test_everything_kept_with_measured_errors_equals_the_network(name):
    c = customer(name)
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    recording = replacement.record(batch)
    out = replacement.run(batch, MEASURED_ERRORS, recording).output
    torch.testing.assert_close(out, c.network(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_alone_it_differs_unless_it_is_exact(name):
    c = customer(name)
    batch = c.network.example()
    out, clean = Replacement(c.network, c.groups).run(batch).output, c.network(batch)
    if name in EXACT:
        torch.testing.assert_close(out, clean, rtol=0, atol=1e-5)
    else:
        assert (out - clean).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_that_changes_nothing_leaves_the_output_bit_equal(name):
    c = customer(name)
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    recording = replacement.record(batch) if c.acausal else None
    edits = {m: lambda z: z.with_values(z.values.clone()) for g in c.groups for m in g.members}
    assert torch.equal(replacement.intervene(batch, edits, recording).output, c.network(batch))


@pytest.mark.parametrize("name", NAMES)
def test_an_intervention_writes_its_delta_at_every_site(name):
    c = customer(name)
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    recording = replacement.record(batch)
    member = c.groups[0].members[0]
    changed = replacement.intervene(batch, {member: lambda z: z.with_values(3 * z.values)}, recording).output
    assert (changed - c.network(batch)).abs().max() > 1e-4


def test_the_first_delta_is_exactly_two_times_what_was_written():
    c = customer("crosscoder")
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    recording, member = replacement.record(batch), c.groups[0].members[0]
    first = member.writes[0]
    edits = {member: lambda z: z.with_values(3 * z.values)}
    with replacement.installed(INTERVENE, recording, edits, batch), Tap(c.network.module, [first]) as tap:
        c.network(batch)
    expected = recording.acts[first, 0] + 2 * member.decode(recording.latents[member, 0])[first]
    torch.testing.assert_close(tap[first], expected, rtol=0, atol=1e-5)


def test_an_acausal_crosscoder_is_refused_by_name_and_told_what_to_do():
    c = customer("crosscoder")
    replacement = Replacement(c.network, c.groups)
    with pytest.raises(AcausalReplacement, match=r"Crosscoder must write .* waits for blocks.2:out.*intervene"):
        replacement.run(c.network.example())
    with pytest.raises(AcausalReplacement, match=r"recording=replacement.record"):
        replacement.intervene(c.network.example(), {c.groups[0].members[0]: lambda z: z})


def test_two_groups_that_write_one_site_are_refused():
    c = customer("sae")
    with pytest.raises(AmbiguousWrite, match=r"two groups write blocks\.1:out"):
        Replacement(c.network, [*c.groups, *c.groups])


def test_a_policy_with_errors_asks_for_its_recording():
    c = customer("sae")
    with pytest.raises(NeedsRecording, match=r"replacement\.record"):
        Replacement(c.network, c.groups).run(c.network.example(), MEASURED_ERRORS)


def members(name: str) -> tuple[list[Dictionary], dict]:
    c = customer(name)
    sites = {s for g in c.groups for s in (*g.reads, *g.writes)}
    return [m for g in c.groups for m in g.members], c.network.record(c.network.example(), sites)


@pytest.mark.parametrize("name", NAMES)
def test_decode_is_the_sum_of_atoms_times_values(name):
    found, acts = members(name)
    for member in found:
        z = member.encode(acts).z
        atoms = member.atoms(torch.arange(member.n_latents))
        for site, part in member.decode(z).items():
            torch.testing.assert_close(part, z.dense() @ atoms[site], rtol=1e-4, atol=1e-4)
            assert part.shape[:-1] == z.shape


@pytest.mark.parametrize(
    "name", ["sae", "transcoder", "clt", "crosscoder", "parameters", "components", "gated_neurons", "batch_topk"]
)
def test_linearised_rows_give_back_every_value(name):
    found, acts = members(name)
    for member in found:
        z = member.encode(acts).z
        rows, bias, index = member.linearise(acts, z)
        total = bias[index].clone()
        for site in member.reads:
            x = acts[site].reshape(-1, acts[site].shape[-1])
            total += (rows[site][index] * x[z.rows]).sum(-1)
        torch.testing.assert_close(total.clamp(min=0) if (z.values >= 0).all() else total, z.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["sae", "transcoder", "clt", "crosscoder", "batch_topk"])
def test_a_thresholded_dictionary_restricts_to_some_latents_without_changing_them(name):
    found, acts = members(name)
    for member in found:
        fitted = member.thresholded(acts)
        z = fitted.encode(acts).z
        assert abs(len(z.values) - int((member.encode(acts).z.values > 0).sum())) <= 0.05 * len(z.values) + 2
        ids = torch.arange(0, member.n_latents, 3)
        mask = torch.zeros(member.n_latents, dtype=torch.bool)
        mask[ids] = True
        part, kept = fitted.restrict(ids).encode(acts).z, z.keep(mask)
        torch.testing.assert_close(part.dense(), kept.dense(), rtol=0, atol=1e-5)
        for site, value in fitted.restrict(ids).reconstruct(acts).items():
            torch.testing.assert_close(value, fitted.write(kept, acts)[site], rtol=0, atol=1e-4)


def test_a_competing_dictionary_refuses_to_be_restricted():
    (member, *_), _ = members("sae")
    with pytest.raises(Exception, match="thresholded"):
        member.restrict(torch.arange(3))


def test_matryoshka_prefixes_are_nested_reconstructions():
    """Several reconstructions of one site, as its objective needs them: prefixes of the latents, the last one whole."""
    found, acts = members("sae")
    z, site = found[0].encode(acts).z, found[0].writes[0]
    atoms = found[0].atoms(torch.arange(24))[site]
    for size in (6, 12, 24):
        prefix = found[0].write(z.keep(torch.arange(24) < size), acts)[site]
        naive = z.dense()[..., :size] @ atoms[:size] + found[0].rest(acts)[site]
        torch.testing.assert_close(prefix, naive, rtol=0, atol=1e-4)


def test_padded_places_keep_the_networks_own_activations():
    """Masked tokens, whatever they are, change no real place's output under any policy."""
    c = customer("transcoder")
    replacement, batch = Replacement(c.network, c.groups), tokens()
    longer = torch.cat([batch.inputs["tokens"], torch.full((4, 2), 7)], 1)
    mask = torch.cat([batch.mask, torch.zeros(4, 2, dtype=torch.bool)], 1)
    padded = Batch({"tokens": longer}, mask=mask)
    short = replacement.run(batch).output
    torch.testing.assert_close(replacement.run(padded).output[:, :6], short, rtol=0, atol=1e-6)


def test_members_of_one_group_are_summed():
    c = customer("sae")
    twice = Group([*c.groups[0].members, *c.groups[0].members])
    acts = c.network.record(c.network.example(), twice.reads)
    one = c.groups[0].reconstruct(acts)
    for site, value in twice.reconstruct(acts).items():
        torch.testing.assert_close(value, 2 * one[site])


def test_an_edit_for_what_is_not_there_is_refused():
    c = customer("sae")
    replacement = Replacement(c.network, c.groups)
    with pytest.raises(UnknownName, match="edited through its members"):
        replacement.run(c.network.example(), edits={c.groups[0]: lambda z: z})
    with pytest.raises(UnknownName, match="not among the dictionaries"):
        replacement.intervene(c.network.example(), {customer("sae").groups[0].members[0]: lambda z: z})


def test_an_intervention_reports_the_latents_it_put_there():
    c = customer("sae")
    member = c.groups[0].members[0]
    run = Replacement(c.network, c.groups).intervene(
        c.network.example(), {member: lambda z: z.with_values(z.values * 2)}
    )
    plain = Replacement(c.network, c.groups).run(c.network.example())
    torch.testing.assert_close(run.latents[member][0].values, 2 * plain.latents[member][0].values)


def test_padding_in_time_keeps_the_networks_own_activations():
    c = customer("gru")
    replacement, batch = Replacement(c.network, c.groups), tokens()
    mask = batch.mask.clone()
    mask[:, :3] = False
    out = replacement.run(Batch(batch.inputs, mask=mask)).output
    clean = c.network(batch)
    torch.testing.assert_close(out[:, :3], clean[:, :3], rtol=0, atol=0)
    assert (out[:, 3:] - clean[:, 3:]).abs().max() > 1e-3


def test_the_first_places_keep_the_networks_own_activations_whatever_the_mask():
    c, batch = customer("transcoder"), tokens()
    out = Replacement(c.network, c.groups, skip_first=2).run(batch).output
    clean, plain = c.network(batch), Replacement(c.network, c.groups).run(batch).output
    torch.testing.assert_close(out[:, :2], clean[:, :2], rtol=0, atol=0)
    assert (out[:, 2:] - clean[:, 2:]).abs().amax((0, 2)).min() > 1e-3
    assert (out[:, 2:] - plain[:, 2:]).abs().max() > 1e-6, "attention reads the original first places"
    masked = Replacement(c.network, c.groups).run(batch.skipping(2)).output
    assert torch.equal(out, masked), "a batch that says the same gives the same"


def test_the_first_steps_in_time_keep_the_networks_own_activations():
    c, batch = customer("gru"), tokens()
    out, clean = Replacement(c.network, c.groups, skip_first=3).run(batch).output, c.network(batch)
    torch.testing.assert_close(out[:, :3], clean[:, :3], rtol=0, atol=0)
    assert (out[:, 3:] - clean[:, 3:]).abs().max() > 1e-3


def test_places_without_positions_have_no_first_ones():
    c = customer("cnn")
    with pytest.raises(WrongShape, match="first:out has no axis of positions: set it to 0"):
        Replacement(c.network, c.groups, skip_first=1).run(c.network.example())


def test_two_groups_that_write_one_tensor_under_two_names_are_refused():
    """A block's output is the next one's input: the second write would undo the first."""
    c = customer("sae")
    names = Site("blocks.0"), Site("blocks.1", "in")
    groups = [Group([Rule(site)]) for site in names]
    with pytest.raises(AmbiguousWrite, match=r"blocks\.0:out and blocks\.1:in are two names of one tensor"):
        Replacement(c.network, groups)
    other = [Group([Rule(Site("blocks.0"))]), Group([Rule(Site("blocks.1.norm_mlp"))])]
    assert Replacement(c.network, other)


def test_a_mask_that_does_not_fit_the_places_is_refused():
    c = customer("cnn")
    batch = Batch(c.network.example().inputs, mask=torch.tensor([[True], [True], [True], [False]]))
    with pytest.raises(WrongShape, match="which of the places"):
        Replacement(c.network, c.groups).run(batch)


def test_a_dictionary_that_mixes_places_is_judged_on_whole_sequences():
    """An attention head needs [batch, pos, d]: as loose rows its figures would be of other inputs."""
    from understudy.workflows._training.finish import _Look

    c = customer("head")
    batch = tokens().skipping(1)
    [group] = c.groups
    acts = c.network.record(batch, (*group.reads, *group.writes))
    look = _Look(group)
    look.add_acts(acts, batch)
    assert look.n_rows == 4 * 5
    assert look.fvu() == pytest.approx(0, abs=1e-9), "it is the head itself"
