"""The GRU: its cell against torch's, sites inside the recurrence, states carried on, and its file."""

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from understudy import Batch, Group, Replacement, Site, TopK, Transcoder, find_parts, find_sites, open_network
from understudy.baselines import PCA, Constant
from understudy.core.records.errors import BadWeights, UnderstudyError, UnknownName
from understudy.networks.gru import GRU, GRUConfig, GRULanguageModel, save_gru
from understudy.sparsity import Identity

CONFIG = GRUConfig(61, hidden_size=12, state_size=10, num_hidden_layers=2, eos_token_id=0)


def made(config: GRUConfig = CONFIG) -> GRULanguageModel:
    torch.manual_seed(0)
    module = GRU(config)
    for p in module.parameters():  # as far from linear as a trained one
        nn.init.normal_(p, std=0.4)
    return GRULanguageModel(module, "gru")


def ids(n: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 61, (3, n), generator=torch.Generator().manual_seed(seed))


def test_the_cell_is_torchs():
    network = made()
    for block in network.module.layers:
        cell, reference = block.mixer.cell, nn.GRU(12, 10, batch_first=True)
        own = {"weight_ih_l0": cell.input.weight, "weight_hh_l0": cell.hidden.weight,
               "bias_ih_l0": cell.input.bias, "bias_hh_l0": cell.hidden.bias}  # fmt: skip
        reference.load_state_dict(own)
        x = torch.randn(3, 20, 12)
        with torch.no_grad():
            states, last = reference(x)
            out, state = block.mixer(x, torch.zeros(3, 10), None)
        torch.testing.assert_close(out, states @ block.mixer.out.weight.T, atol=1e-5, rtol=0)
        torch.testing.assert_close(state, last[0], atol=1e-6, rtol=0)


def test_gates_and_candidate_make_the_state():
    network, batch = made(), Batch({"input_ids": ids()})
    sites = find_sites(network, "cell_in.1,update.1,candidate.1,state.1")
    joint, update, candidate, state = network.record(batch, sites).values()
    assert [tuple(v.shape) for v in (joint, update)] == [(3, 9, 22), (3, 9, 10)]
    before = torch.cat([torch.zeros(3, 1, 10), state[:, :-1]], 1)
    assert torch.equal(joint[..., 12:], before)
    torch.testing.assert_close(state, (1 - update) * candidate + update * before)


def test_what_is_written_into_the_state_is_carried_on():
    network, batch = made(), Batch({"input_ids": ids()})
    (state,), (out,) = find_sites(network, "state.0"), find_sites(network, "mixer_out.0")
    clean = network(batch).logits

    def logits(site: Site, at: int) -> torch.Tensor:
        """With site set to 0 at one place."""
        inside = network.layout(site).calls == "time"

        def edit(value: torch.Tensor, call: int) -> torch.Tensor:
            value = value.clone()
            if not inside:
                value[:, at] = 0
            return torch.zeros_like(value) if inside and call == at else value

        with network.edited({site: edit}):
            return network(batch).logits

    changed = (logits(state, 3) - clean).abs().amax(-1)
    assert changed[:, :3].max() == 0
    assert changed[:, 3:].min() > 1e-4
    # The same state read later must come from the edited one: the cell is run again by hand from there.
    cell = network.module.layers[0].mixer.cell
    with network.edited({state: lambda v, call: torch.zeros_like(v) if call == 3 else v}):
        after = network.record(batch, [state])[state]
    x = network.record(batch, find_sites(network, "mixer_in.0")).popitem()[1]
    torch.testing.assert_close(after[:, 4], cell(torch.cat([x[:, 4], torch.zeros(3, 10)], -1)))
    assert not torch.allclose(after[:, 4], network.record(batch, [state])[state][:, 4])
    # What the recurrence adds to the stream is not what it remembers.
    with network.edited({out: lambda v, call: torch.zeros_like(v)}):
        kept = network.record(batch, [state])[state]
    assert torch.equal(kept, network.record(batch, [state])[state])


@pytest.mark.parametrize("site", ["state.0", "mixer_out.1", "resid.0"])
def test_everything_kept_equals_the_network_and_nothing_kept_does_not(site):
    network, batch = made(), Batch({"input_ids": ids()})
    (at,) = find_sites(network, site)
    rows = network.record(batch, [at])[at].flatten(0, 1)
    width = rows.shape[1]
    whole = PCA.fit(at, {at: rows}, width, Identity())
    clean = network(batch).logits
    torch.testing.assert_close(
        Replacement(network, [Group([whole])]).run(batch).output.logits, clean, atol=1e-4, rtol=0
    )
    zero = Replacement(network, [Group([Constant(at, torch.zeros(width))])])
    assert (zero.run(batch).output.logits - clean).abs().max() > 0.1


def test_a_replaced_cell_is_a_recurrence_of_its_own():
    """A transcoder in the cell's place reads the states that it wrote itself, in one pass and while generating."""
    network, batch = made(), Batch({"input_ids": ids()})
    (part,) = find_parts(network, "cell.0")
    acts = {s: v.flatten(0, 1) for s, v in network.record(batch, [part.read, part.write]).items()}
    transcoder = Transcoder.start([part.read], [part.write], 32, TopK(8), acts, 0)
    replacement = Replacement(network, [Group([transcoder])])
    x = network.record(batch, find_sites(network, "mixer_in.0")).popitem()[1]
    state, states = torch.zeros(3, 10), []
    for p in range(9):
        state = transcoder.reconstruct({part.read: torch.cat([x[:, p], state], -1)})[part.write]
        states.append(state)
    with replacement.installed(batch=batch), torch.no_grad():
        found, _ = network.module.layers[0].mixer(x, torch.zeros(3, 10), None)
    assert replacement.run(batch).output.logits.isfinite().all()
    torch.testing.assert_close(found, torch.stack(states, 1) @ network.module.layers[0].mixer.out.weight.T)
    with replacement.installed():
        one = network.module(ids(4)).past
        again = network.module(ids(9)[:, 4:], past=one)
    assert again.past.n == 9


def test_states_carried_on_equal_one_pass_and_padding_changes_nothing():
    network, tokens = made(), ids()
    module = network.module
    whole, first = module(tokens).logits, module(tokens[:, :4])
    second = module(tokens[:, 4:], past=first.past)
    assert (first.past.n, second.past.n) == (4, 9)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole)
    padded = torch.cat([torch.full((3, 2), 7), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0
    behind = network(Batch({"input_ids": padded, "attention_mask": mask})).logits[:, 2:]
    torch.testing.assert_close(behind, whole)


def test_generation_is_the_models_own_and_never_ends_a_text():
    network = made()
    found = network.generate(ids(5), 12, seed=3)
    assert found.shape == (3, 17)
    assert torch.equal(found[:, :5], ids(5))
    assert torch.equal(found, network.generate(ids(5), 12, seed=3))
    assert not torch.equal(found, network.generate(ids(5), 12, seed=4))
    assert (found != CONFIG.eos_token_id).all()
    # Token by token from whole passes, with the same random numbers.
    torch.manual_seed(3)
    text = ids(5)
    for _ in range(12):
        last = network.module(text).logits[:, -1].clone()
        last[:, 0] = -torch.inf
        text = torch.cat([text, torch.multinomial(last.softmax(-1), 1)], 1)
    assert torch.equal(found, text)


def test_a_first_place_left_out_counts_from_the_start_of_the_text():
    """skip_first keeps the network's own activations at the first place alone, not at each generated one."""
    network = made()
    (at,) = find_sites(network, "mixer_out.1")
    zero = Replacement(network, [Group([Constant(at, torch.zeros(12))])], skip_first=1)
    with zero.installed():
        found = network.generate(ids(5), 6, seed=3)
    with zero.installed():
        torch.manual_seed(3)
        text = ids(5)
        for _ in range(6):
            last = network.module(text).logits[:, -1].clone()
            last[:, 0] = -torch.inf
            text = torch.cat([text, torch.multinomial(last.softmax(-1), 1)], 1)
    assert torch.equal(found, text)


def test_it_is_written_and_read_again(tmp_path):
    network = made()
    save_gru(network.module, tmp_path, torch.float32)
    again = open_network(f"hf:{tmp_path}")
    assert isinstance(again, GRULanguageModel)
    batch = Batch({"input_ids": ids()})
    assert torch.equal(again(batch).logits, network(batch).logits)
    assert again.module.config == CONFIG
    half = open_network(f"hf:{tmp_path}", dtype="bfloat16")
    assert half(batch).logits.dtype == half.module.head.weight.dtype == torch.bfloat16
    save_gru(network.module, tmp_path, torch.bfloat16)
    assert open_network(f"hf:{tmp_path}").module.head.weight.dtype == torch.bfloat16, "as saved"
    assert open_network(f"hf:{tmp_path}", dtype="float32").module.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04 no weights"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: _change(f, state_size=11), "differ: state_size is 11 in the one and 10 in the other"),
        (lambda f: _change(f, state_size=10**9), "state_size is 1,000,000,000 in the one and 10 in the other"),
        (lambda f: _change(f, hidden_size=10**9), "hidden_size is 1,000,000,000 in the one"),
        (lambda f: _change(f, vocab_size=10**9), "vocab_size is 1,000,000,000 in the one"),
        (lambda f: _change(f, num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000 in the one and 2 in"),
        (lambda f: _change(f, num_hidden_layers=-1), "num_hidden_layers is -1 in the one"),
        (lambda f: _change(f, hidden_size="wide"), "hidden_size is 'wide'; whole numbers"),
        (lambda f: _change(f, hidden_size=True), "hidden_size is True; whole numbers"),
        (lambda f: _change(f, eos_token_id=10**9), "end of text that is token 1000000000 cannot be"),
        (lambda f: _change(f, max_position_embeddings=0), "a context of 0 places"),
        (lambda f: _reshape(f, "layers.0.mixer.cell.hidden.weight", (1, 10)), "cannot be read: .*size mismatch"),
        (lambda f: _reshape(f, "layers.0.norm.weight", None), "differ, e.g. by layers.0.norm"),
        (lambda f: _reshape(f, "embed.weight", (4,)), "those of no GRU"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, spoil, reason):
    """What the config claims is looked up in the weights; once a width of 10^9 was first made, in memory."""
    save_gru(made().module, tmp_path)
    spoil(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadWeights, match=reason):
        open_network(f"hf:{tmp_path}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16


def _reshape(folder, name, shape):
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if k != name} | ({} if shape is None else {name: torch.zeros(shape)})
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("config", ["{", "[1]"])
def test_a_config_that_is_none_is_refused_as_any_folders(tmp_path, config):
    save_gru(made().module, tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnderstudyError):
        open_network(f"hf:{tmp_path}")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = made()
    network.module.norm.weight[3] = torch.nan
    save_gru(network.module, tmp_path)
    with pytest.raises(BadWeights, match=r"norm.weight holds values that are not finite"):
        open_network(f"hf:{tmp_path}")


def test_a_site_that_is_not_there_names_those_that_are():
    with pytest.raises(UnknownName, match=r"state|mixer|cell"):
        find_sites(made(), "mlp_out.0")


def _change(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
