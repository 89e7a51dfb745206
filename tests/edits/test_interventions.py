"""Interventions by name: idle ones change nothing, others exactly their atoms, on every kind and while generating."""

import pytest
import torch

from tests.contracts.customers import customer
from tests.edits.test_graph_groups import thresholded
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName
from understudy.core.replacement import INTERVENE, Replacement
from understudy.edits import intervene, intervening
from understudy.edits.interventions import named_edits


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def some_latent(replacement, batch, member):
    """A latent that is on, one place where it is, all latents, and one that is made silent everywhere."""
    silent = 0
    member.b_enc[silent] = -100
    z = replacement.record(batch).latents[member, 0]
    assert z.fires()[silent] == 0
    at = int(z.values.argmax())
    return int(z.ids[at]), int(z.rows[at]), z, silent


def name_of(member) -> str:
    return str(member.writes[0])


@pytest.mark.parametrize("name", ["transcoder", "clt", "crosscoder", "sae"])
def test_an_idle_change_leaves_the_output_bit_equal(name):
    c = customer(name)
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    member = c.groups[0].members[0]
    on, _, _, silent = some_latent(replacement, batch, member)
    recording = replacement.record(batch) if c.acausal else None
    clean = c.network(batch)
    for changes in ({}, {f"{name_of(member)}/{on}": "x1"}, {f"{name_of(member)}/{silent}": 0.0}):
        assert torch.equal(intervene(replacement, batch, changes, recording).output, clean)
    doubled = intervene(replacement, batch, {f"{name_of(member)}/{on}": "x2"}, recording).output
    assert not torch.equal(doubled, clean)


@pytest.mark.parametrize("name", ["transcoder", "clt", "crosscoder", "sae"])
def test_doubling_a_latent_writes_exactly_its_atom_once_more(name):
    c = customer(name)
    batch, replacement = c.network.example(), Replacement(c.network, c.groups)
    member = c.groups[0].members[0]
    on, row, z, _ = some_latent(replacement, batch, member)
    recording = replacement.record(batch)
    atoms = member.atoms(torch.tensor([on]))
    value = z.keep(torch.arange(z.n_latents) == on)
    place = row % batch.inputs["tokens"].shape[1]
    for at, where in (("", slice(None)), (f"@{place}", slice(place, place + 1))):
        before, after, handles = {}, {}, []
        for site in member.writes:
            module = c.network.module.get_submodule(site.module)
            note = lambda s, into: lambda m, a, out: into.__setitem__(s, out.clone())  # noqa: E731
            handles.append(module.register_forward_hook(note(site, before), prepend=True))
        edits = named_edits(c.network, c.groups, {f"{name_of(member)}/{on}{at}": "x2"})
        with replacement.installed(INTERVENE, recording, edits, batch):
            for site in member.writes:
                module = c.network.module.get_submodule(site.module)
                handles.append(module.register_forward_hook(note(site, after)))
            c.network.forward(batch)
        for handle in handles:
            handle.remove()
        for site in member.writes:
            wanted = torch.zeros_like(before[site])
            wanted[:, where] = value.decode(torch.zeros(z.n_latents, 8).index_copy(0, torch.tensor([on]), atoms[site]))[
                :, where
            ]
            torch.testing.assert_close(after[site] - before[site], wanted, rtol=0, atol=1e-6)
            assert wanted.any()


def test_several_changes_at_once_add_up_where_nothing_lies_between():
    network, groups = thresholded("transcoder")
    batch, replacement = network.example(), Replacement(network, groups)
    clean = replacement.record(batch)
    last = groups[2].members[0]
    z = clean.latents[last, 0]
    a, b = (int(i) for i in z.fires().topk(2).indices)
    name = "blocks.2.mlp"
    runs = [
        intervene(replacement, batch, {f"{name}/{i}": v for i, v in change.items()}).output - network(batch)
        for change in ({a: 0.0}, {b: "x3"}, {a: 0.0, b: "x3"})
    ]
    torch.testing.assert_close(runs[0] + runs[1], runs[2], rtol=0, atol=1e-5)
    assert runs[0].any()
    assert runs[1].any()


def test_a_silent_latent_can_be_switched_on():
    network, groups = thresholded("transcoder")
    batch, replacement = network.example(), Replacement(network, groups)
    member = groups[2].members[0]
    _, _, z, silent = some_latent(replacement, batch, member)
    run = intervene(replacement, batch, {f"blocks.2.mlp/{silent}@1-2": 1.5})
    used = run.latents[member][0].keep(torch.arange(z.n_latents) == silent)
    assert used.values.tolist() == [1.5] * 2 * batch.n_sequences
    assert sorted(set((used.rows % 6).tolist())) == [1, 2]
    wanted = 1.5 * member.atoms(torch.tensor([silent]))[member.writes[0]][0]
    head = network.module.get_submodule("head").weight  # pyright: ignore
    difference = run.output - network(batch)
    torch.testing.assert_close(difference[:, 1], (head @ wanted).expand(4, -1), rtol=0, atol=1e-5)  # pyright: ignore
    assert not difference[:, [0, 3, 4, 5]].any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"blocks.1.mlp": 0.0}, BadInput, "is not a latent: write"),
        ({"blocks.1.mlp/7@x": 0.0}, BadInput, "is not a latent"),
        ({"blocks.1.mlp/24": 0.0}, UnknownName, "numbered 0 to 23"),
        ({"blocks.1.mpl/2": 0.0}, UnknownName, r"blocks\.1\.mlp"),
        ({"blocks.1.mlp/2": "twice"}, BadInput, "neither a value"),
    ],
)
def test_what_cannot_be_read_is_refused(changes, error, message):
    network, groups = thresholded("transcoder")
    with pytest.raises(error, match=message):
        named_edits(network, groups, changes)


@pytest.fixture(scope="module")
def demo():
    from understudy.dictionaries import Transcoder
    from understudy.networks import open_network
    from understudy.sparsity import TopK

    network = open_network("demo")
    parts = [p for p in network.parts() if p.name.startswith("mlp")]
    groups = []
    with torch.no_grad():
        for part in parts:
            acts = network.record(network.example(), [part.read, part.write])
            rows = {s: v.flatten(0, 1) for s, v in acts.items()}
            made = Transcoder.start([part.read], [part.write], 32, TopK(4), rows, 0)
            made.W_dec.normal_(generator=torch.Generator().manual_seed(1))
            groups.append(Group([made.thresholded(rows)]))
    return network, groups


def test_generation_with_an_idle_change_writes_the_same_text(demo):
    network, groups = demo
    prompts = network.example().inputs["input_ids"]
    plain = network.generate(prompts, 8, seed=3)
    with intervening(Replacement(network, groups), {"mlp.2/5": "x1", "mlp.0/3@2-4": "x1"}):
        assert torch.equal(network.generate(prompts, 8, seed=3), plain)
    with intervening(Replacement(network, groups), {"mlp.2/5": 9.0}):
        assert not torch.equal(network.generate(prompts, 8, seed=3), plain)


def test_places_count_the_prompt_while_generating(demo):
    """A change from a written token on leaves the prompt and what follows it up to there as they were."""
    network, groups = demo
    prompts = network.example().inputs["input_ids"]
    length = prompts.shape[1]
    plain = network.generate(prompts, 10, seed=3)
    with intervening(Replacement(network, groups), {f"mlp.3/5@{length + 4}-": 60.0}):
        changed = network.generate(prompts, 10, seed=3)
    # What place p holds decides token p + 1.
    assert torch.equal(changed[:, : length + 5], plain[:, : length + 5])
    assert not torch.equal(changed, plain)


def test_a_network_that_does_not_say_where_it_is_cannot_be_changed_at_a_place():
    c = customer("gru")
    replacement = Replacement(c.network, c.groups)
    with pytest.raises(UnderstudyError, match="at every place"):
        intervene(replacement, c.network.example(), {"cell/3@2": 1.0})
    assert intervene(replacement, c.network.example(), {"cell/3": 1.0}).output.isfinite().all()
